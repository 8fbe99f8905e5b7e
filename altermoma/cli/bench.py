"""`altermoma bench`: whole-frame latency of bundles, interleaved. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench(  # noqa: PLR0913 - one parameter per option
    bundles: Annotated[list[Path], typer.Argument(help="One bundle, or several that take turns; the dense one first.")],
    *,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option("--engine", help="Precision to run; fp16 on ONNX Runtime's CPU is refused."),
    ] = "fp32",
    backend: Annotated[Literal["onnxruntime", "tensorrt"], typer.Option(help="Runtime.")] = "onnxruntime",
    preparation: Annotated[
        Literal["auto", "host", "device"], typer.Option(help="Where frames are prepared with tensorrt.")
    ] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of the reference frame.")] = 20,
    warmup: Annotated[
        int, typer.Option(min=0, help="Runs before, not counted; graphs are captured in the second.")
    ] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for latency.json and latency.md.")] = None,
) -> None:
    """Time whole frames, sensor arrays in and boxes out, on the reference frame that each bundle carries."""
    from altermoma.report.latency import latency_markdown
    from altermoma.storage import write_json, write_text
    from altermoma.workflow.bundles import BenchPlan, bench_bundles

    plan = BenchPlan(
        backend=backend, precision=precision, preparation=preparation, rounds=rounds, warmup=warmup, threads=threads
    )
    record = bench_bundles(bundles, plan)
    page = latency_markdown(record)
    if out is not None:
        write_json(out / "latency.json", record)
        write_text(out / "latency.md", page)
    print(page)
