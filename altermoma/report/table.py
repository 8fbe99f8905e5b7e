"""The summary as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from altermoma.deploy.benchmark import FRAME
from altermoma.deploy.engine_report import HEADER, engine_cells
from altermoma.report.summary import Engines, Summary, Variant


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Prints every variant, then the plain lines a user must not miss."""
    console = console or Console()
    console.print(summary_table(summary))
    share = summary.realised_share
    console.print(
        f"FLOPs removed: {summary.flops_reduction:.1%}; realised share R (ONNX Runtime fp32): "
        f"{_number(share.graphs, 2)} over the graphs, {_number(share.frame, 2)} over whole frames",
        highlight=False,
    )
    console.print(f"{summary.seconds['total']:.0f} s, {summary.peak_memory_mib:.0f} MiB at most", highlight=False)
    for line in (_engine_line(summary.engines), *summary.notes):
        console.print(Text(line), soft_wrap=True)
    if summary.engines.built:
        console.print(engine_table(summary.engines))


def _engine_line(engines: Engines) -> str:
    return f"{engines.line}; on the target: {engines.command}" if engines.command else engines.line


def engine_table(engines: Engines) -> Table:
    """What was asked of each engine beside what it is."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in HEADER:
        table.add_column(name)
    for row in engines.built:
        table.add_row(*engine_cells(row))
    return table


def summary_table(summary: Summary) -> Table:
    table = Table(
        title=f"{summary.name} on {summary.data.get('title', 'the validation split')}",
        title_justify="left",
        caption="mAP and NDS in percent; milliseconds and R over whole frames",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("variant", no_wrap=True)
    for name in ("mAP", "NDS", "GFLOP", "Mpar", "p50", "p90", "p99", "R"):
        table.add_column(name, justify="right")
    for variant in summary.variants.values():
        table.add_row(*_cells(variant))
    return table


def _cells(variant: Variant) -> tuple[str, ...]:
    frame = (variant.latency_ms or {}).get(FRAME)
    times = (frame.p50, frame.p90, frame.p99) if frame else (None, None, None)
    return (
        variant.title,
        f"{100 * variant.mAP:.2f}",
        f"{100 * variant.NDS:.2f}",
        f"{variant.gflops:.2f}",
        f"{variant.params / 1e6:.2f}",
        *(_number(value, 1) for value in times),
        _number(variant.realised_share, 2),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
