"""`report.html`: one page that carries everything it shows; no script, no request to anywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from altermoma.deploy.benchmark import FRAME
from altermoma.deploy.engine_report import HEADER, engine_cells
from altermoma.deploy.manifest import STAGES
from altermoma.report.paper import paper_table
from altermoma.report.pareto import draw, points_of, svg
from altermoma.report.scenes import Scene
from altermoma.report.summary import LayerWidth, Product, SparseProducts, Summary, Variant, stage_names
from altermoma.storage import write_text

ABSENT, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_LEADING_NUMBERS = re.compile(r"^\d+ |(?<=and )\d+ (?=outputs)")
TONES = {stage: f"n{index}" for index, stage in enumerate(STAGES)}
"""Colour class of each stage of the network; what the host does stays grey."""


@dataclass(frozen=True, kw_only=True)
class StageBar:
    stage: str
    milliseconds: float
    percent: float


@dataclass(frozen=True, kw_only=True)
class LatencyBar:
    """One variant's median milliseconds by stage; percents are of the slowest variant shown."""

    title: str
    total: float
    stages: tuple[StageBar, ...]


def write_report(path: Path, summary: Summary, scene: Scene | None) -> None:
    """Renders the page of a run and writes it atomically."""
    write_text(path, render(summary, scene))


def render(summary: Summary, scene: Scene | None) -> str:
    """The whole page as HTML.

    Args:
        summary: figures of the run.
        scene: the frame to show; None leaves the pictures out.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("altermoma.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(fixed=_fixed, percent=_percent, signed=_signed, title_of=_title_of, verdict=_verdict)
    style = resources.files("altermoma.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        engine_header=HEADER,
        engines=[engine_cells(row) for row in summary.engines.built],
        summary=summary,
        scene=scene,
        paper=paper_table(),
        style=style,
        headline=headline(summary),
        bars=latency_bars(summary),
        pareto=_pareto(summary),
        sparse_rows=sparse_rows(summary.sparsity),
        stages=stage_names(list(summary.variants.values())),
        partitions=widths_by_partition(summary.channels),
        tones=TONES,
        frame=FRAME,
    )


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The four figures at the top: the pruned model in ONNX Runtime fp32 against the dense one there, else torch's."""

    dense: Variant
    pruned: Variant
    latency_share: float | None
    runtime: str


def _pareto(summary: Summary) -> str:
    plot = draw(points_of(summary))
    return svg(plot) if plot is not None else ""


def headline(summary: Summary) -> Headline:
    pairs = (("dense-onnxruntime-fp32", "onnxruntime-fp32"), ("dense", "pruned"))
    for dense_name, pruned_name in pairs:
        dense, pruned = summary.variants.get(dense_name), summary.variants.get(pruned_name)
        if dense and pruned and dense.latency_ms and pruned.latency_ms:
            share = pruned.latency_ms[FRAME].p50 / dense.latency_ms[FRAME].p50
            runtime = "ONNX Runtime fp32" if dense.runtime == "onnxruntime" else "torch"
            return Headline(dense=dense, pruned=pruned, latency_share=share, runtime=runtime)
    return Headline(
        dense=summary.variants["dense"], pruned=summary.variants["pruned"], latency_share=None, runtime="not timed"
    )


def latency_bars(summary: Summary) -> list[LatencyBar]:
    """Stacked bars of every variant with honest latencies."""
    timed = [variant for variant in summary.variants.values() if variant.latency_ms]
    names = stage_names(timed)
    totals = [sum(times.p50 for stage, times in (v.latency_ms or {}).items() if stage != FRAME) for v in timed]
    longest = max(totals, default=1.0)
    return [
        LatencyBar(
            title=variant.title,
            total=total,
            stages=tuple(
                StageBar(
                    stage=stage,
                    milliseconds=variant.latency_ms[stage].p50,
                    percent=100 * variant.latency_ms[stage].p50 / longest,
                )
                for stage in names
                if variant.latency_ms and stage in variant.latency_ms
            ),
        )
        for variant, total in zip(timed, totals, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class SparseRow:
    """Products with the same verdict: how many, and their share of the FLOPs."""

    verdict: str
    count: int
    flops: float


def sparse_rows(found: SparseProducts | None) -> list[SparseRow]:
    """Verdicts on 2:4, the largest share of the FLOPs first; obstacles that differ in numbers alone are one."""
    if found is None:
        return []
    whole = sum(layer.flops for layer in found.layers) or 1.0
    verdicts: dict[str, list[float]] = {}
    for layer in found.layers:
        verdicts.setdefault(_LEADING_NUMBERS.sub("", _verdict(layer)), []).append(layer.flops)
    rows = [SparseRow(verdict=name, count=len(f), flops=sum(f) / whole) for name, f in verdicts.items()]
    return sorted(rows, key=lambda row: -row.flops)


def _verdict(layer: Product) -> str:
    return layer.obstacle or ("holds 2:4" if layer.two_four else "could be 2:4, is dense")


def widths_by_partition(channels: tuple[LayerWidth, ...]) -> dict[str, list[LayerWidth]]:
    found: dict[str, list[LayerWidth]] = {}
    for layer in channels:
        found.setdefault(layer.partition, []).append(layer)
    return found


def _fixed(value: float | None, digits: int = 2) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return ABSENT if value is None else f"{100 * value:.{digits}f} %"


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)


def _title_of(value: Any) -> str:
    return {"camera": "Camera backbone", "lidar": "LiDAR backbone", "fusion": "Fusion and head"}.get(
        str(value), str(value)
    )
