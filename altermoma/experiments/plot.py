"""Lines and bars as SVG that a page carries itself; no library, no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 740.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 250.0, 14.0, 40.0
ROW = 22.0
"""Height of a row of a dot plot."""
MARKS = 24
"""Names below a plot that do not touch."""
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8a5ea8", "#e0912f", "#3aa6a0", "#777777", "#b07d62", "#4d4d4d")


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Names of both axes, and the values that the lower one marks."""

    x: str
    y: str
    marks: Sequence[float]


def line_plot(
    lines: Mapping[str, Sequence[tuple[float, float]]], axes: Axes, level: tuple[str, float] | None = None
) -> str:
    """Points joined by lines, one colour each, named at the right.

    Args:
        lines: name to points, x rising; empty ones are left out.
        axes: names and marks.
        level: name and height of a dashed line right across.
    """
    drawn = {name: points for name, points in lines.items() if points}
    values = [y for points in drawn.values() for _, y in points] + ([level[1]] if level else [])
    if not values:
        return ""
    across = _Scale(min(axes.marks), max(axes.marks), LEFT + 14, WIDTH - RIGHT - 14)
    low, high = _rounded(min(values), max(values))
    up = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_frame(axes, across, up, (low, high))]
    if level:
        y = up.at(level[1])
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    ends = sorted((up.at(points[-1][1]), name) for name, points in drawn.items())
    places = _spread_out([end for end, _ in ends])
    height_of = {name: place for (_, name), place in zip(ends, places, strict=True)}
    for index, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3.2" fill="{colour}">'
            f"<title>{escape(name)}: {y:.2f}</title></circle>"
            for x, y in points
        ]
        parts.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{height_of[name] + 4:.1f}" fill="{colour}">{escape(name)}</text>'
        )
    if level:
        parts.append(f'<text x="{LEFT + 6}" y="{up.at(level[1]) - 5:.1f}">{escape(level[0])}</text>')
    return f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img">{"".join(parts)}</svg>'


def bar_plot(bars: Mapping[str, Mapping[str, float]], y: str) -> str:
    """Groups of bars: group name to bar name to value, from 0 or the lowest value."""
    names = list(dict.fromkeys(name for group in bars.values() for name in group))
    values = [value for group in bars.values() for value in group.values()]
    if not values:
        return ""
    low, high = _rounded(min(0.0, *values), max(0.0, *values))
    up = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_horizontal(up, (low, high), y)]
    room = (WIDTH - RIGHT - LEFT) / len(bars)
    width = 0.8 * room / len(names)
    for place, (group, found) in enumerate(bars.items()):
        start = LEFT + place * room
        for index, name in enumerate(names):
            if name in found:
                top, bottom = sorted((up.at(found[name]), up.at(0.0)))
                parts.append(
                    f'<rect x="{start + 0.1 * room + index * width:.1f}" y="{top:.1f}" width="{width * 0.92:.1f}" '
                    f'height="{max(bottom - top, 0.5):.1f}" fill="{COLOURS[index % len(COLOURS)]}">'
                    f"<title>{escape(group)}, {escape(name)}: {found[name]:.3g}</title></rect>"
                )
        if place % _every(len(bars)) == 0:
            x, y_name = start + room / 2, HEIGHT - BOTTOM + 16
            parts.append(f'<text x="{x:.1f}" y="{y_name}" text-anchor="middle">{escape(group)}</text>')
    parts += [
        f'<text x="{WIDTH - RIGHT + 8}" y="{TOP + 12 + 16 * index}" fill="{COLOURS[index % len(COLOURS)]}">'
        f"{escape(name)}</text>"
        for index, name in enumerate(names)
    ]
    return f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img">{"".join(parts)}</svg>'


def dot_plot(rows: Mapping[str, tuple[float, float]], x: str, level: tuple[str, float]) -> str:
    """One line of the page for each row: a dot at its mean, and a bar of one deviation to either side.

    Args:
        rows: name to mean and deviation, from the top.
        x: name of the axis.
        level: name and place of a dashed line from top to bottom.
    """
    if not rows:
        return ""
    ends = [end for mean, deviation in rows.values() for end in (mean - deviation, mean + deviation)]
    low, high = _rounded(min(*ends, level[1]), max(*ends, level[1]))
    across = _Scale(low, high, LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(rows) + 6
    parts = []
    for value in round_values(low, high):
        place = across.at(value)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 34}" text-anchor="middle" class="axis">{escape(x)}</text>')
    place = across.at(level[1])
    parts.append(f'<line class="level" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{bottom}"/>')
    for number, (name, (mean, deviation)) in enumerate(rows.items()):
        y, colour = TOP + ROW * (number + 0.5), COLOURS[number % len(COLOURS)]
        left, right = across.at(mean - deviation), across.at(mean + deviation)
        parts.append(
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{across.at(mean):.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
            f"<title>{escape(name)}: {mean:.2f}</title></circle>"
            f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}" fill="{colour}">{escape(name)}</text>'
        )
    parts.append(f'<text x="{place:.1f}" y="{TOP - 3}" text-anchor="middle">{escape(level[0])}</text>')
    return f'<svg viewBox="0 0 {WIDTH:.0f} {bottom + 40:.0f}" role="img">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def round_values(low: float, high: float) -> list[float]:
    """A few multiples of 1, 2 or 5 times a power of ten, from low to high."""
    least = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
    # Adding 0 takes the sign off a zero.
    return [round(number * step, 12) + 0.0 for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _every(count: int) -> int:
    """Of so many marks in a row, every how many-th has room for its name."""
    return math.ceil(count / MARKS)


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Ends a little outside, so that no point lies on the frame."""
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return (low if low == 0.0 else low - room), (high if high == 0.0 else high + room)


def _frame(axes: Axes, across: _Scale, up: _Scale, ends: tuple[float, float]) -> str:
    marks = "".join(
        f'<text x="{across.at(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>'
        for x in axes.marks[:: _every(len(axes.marks))]
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    name = f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle" class="axis">{escape(axes.x)}</text>'
    return _horizontal(up, ends, axes.y) + marks + name


def _horizontal(up: _Scale, ends: tuple[float, float], name: str) -> str:
    parts = []
    for value in round_values(*ends):
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle" class="axis">'
        f"{escape(name)}</text>"
    )
    return "".join(parts)


def _spread_out(heights: Sequence[float], apart: float = 14.0) -> list[float]:
    """The same heights, rising, moved down where two would touch."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + apart) if found else height)
    return found
