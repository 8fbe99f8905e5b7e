"""`altermoma bench`: whole-frame latency of bundles, interleaved. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench(
    bundles: Annotated[list[Path], typer.Argument(help="One bundle, or several that take turns frame by frame.")],
    *,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option("--engine", help="Precision to run; fp16 on ONNX Runtime's CPU is refused."),
    ] = "fp32",
    backend: Annotated[Literal["onnxruntime", "tensorrt"], typer.Option(help="Runtime.")] = "onnxruntime",
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of the reference frame.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Time whole frames, sensor arrays in and boxes out, on the reference frame that each bundle carries."""
    from altermoma.workflow.bundles import bench_bundles

    print(bench_bundles(bundles, backend, precision, rounds=rounds, threads=threads).to_markdown())
