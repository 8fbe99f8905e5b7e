"""Accuracy against time: which variants no other beats in both, and a drawing of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from altermoma.deploy.benchmark import FRAME
from altermoma.report.summary import Summary

WIDTH, HEIGHT = 640.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 150.0, 16.0, 38.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One variant: p50 milliseconds of a frame and mAP in points; `mib` is the size of its graphs, where known."""

    title: str
    ms: float
    map_points: float
    mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point as it is drawn, in the drawing's units."""

    point: Point
    x: float
    y: float
    front: bool


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing: dots, the front as a path, and labelled ticks of both axes."""

    dots: tuple[Dot, ...]
    path: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: float = WIDTH
    height: float = HEIGHT


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats: none is as fast and as accurate and better in one. By rising time."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ms, -p.map_points)):
        if not found or point.map_points > found[-1].map_points:
            found.append(point)
    return found


def points_of(summary: Summary) -> list[Point]:
    """The variants of a run whose latency means something, in one runtime: ONNX Runtime."""
    timed = [v for v in summary.variants.values() if v.latency_ms and v.runtime == "onnxruntime"]
    return [
        Point(title=v.title.replace(", ONNX Runtime", ""), ms=v.latency_ms[FRAME].p50, map_points=100 * v.mAP)
        for v in timed
        if v.latency_ms
    ]


def draw(points: Sequence[Point]) -> Plot | None:
    """The drawing; None for fewer than three points, which a table shows as well."""
    if len(points) < 3:
        return None
    best = front(points)
    x_low, x_high = _span([0.0, *(p.ms for p in points)])
    y_low, y_high = _span([p.map_points for p in points])

    def x(ms: float) -> float:
        return round(_LEFT + (ms - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM), 1)

    corners = [f"{x(p.ms)},{y(p.map_points)}" for p in best]
    return Plot(
        dots=tuple(Dot(point=p, x=x(p.ms), y=y(p.map_points), front=p in best) for p in points),
        path="M" + " L".join(corners),
        x_ticks=tuple((x(value), f"{value:.0f}") for value in _ticks(x_low, x_high)),
        y_ticks=tuple((y(value), f"{value:.1f}") for value in _ticks(y_low, y_high)),
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 1.0
    return (low if low == 0.0 else low - room), high + room


def _ticks(low: float, high: float) -> list[float]:
    return [low + (high - low) * i / 4 for i in range(5)]


def svg(plot: Plot) -> str:
    """The drawing as a file of its own."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {plot.width:g} {plot.height:g}" '
        'font-family="sans-serif" font-size="11">'
    ]
    floor = plot.height - _BOTTOM
    lines += [
        f'<text x="{x}" y="{floor + 16}" text-anchor="middle" fill="#5c6570">{text}</text>' for x, text in plot.x_ticks
    ]
    lines += [
        f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end" fill="#5c6570">{text}</text>'
        f'<path d="M{_LEFT},{y} H{plot.width - _RIGHT}" stroke="#e3e5e8"/>'
        for y, text in plot.y_ticks
    ]
    lines.append(f'<text x="{_LEFT}" y="{plot.height - 6}" fill="#5c6570">frame, ms; upwards mAP, points</text>')
    lines.append(f'<path d="{plot.path}" fill="none" stroke="#0b8f7a" stroke-width="1.5"/>')
    for dot in plot.dots:
        colour = "#0b8f7a" if dot.front else "#8a939e"
        lines.append(f'<circle cx="{dot.x}" cy="{dot.y}" r="4" fill="{colour}"/>')
        lines.append(f'<text x="{dot.x + 7}" y="{dot.y + 4}" fill="#1b1f24">{dot.point.title}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def joint_table(points: Mapping[str, Point], base: str) -> str:
    """Every point as a row of a table, with its time against that of `base`, and whether it is on the front."""
    best = front(list(points.values()))
    lines = ["| variant | mAP | ms | times faster | MiB | on the front |", "|---|---|---|---|---|---|"]
    for point in points.values():
        size = f"{point.mib:.1f}" if point.mib is not None else ""
        lines.append(
            f"| {point.title} | {point.map_points:.2f} | {point.ms:.1f} | {points[base].ms / point.ms:.2f} | {size} | "
            f"{'yes' if point in best else ''} |"
        )
    return "\n".join(lines)
