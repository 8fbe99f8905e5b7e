"""Work on bundles alone, as a vehicle does it: no torch, no data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from altermoma.deploy.benchmark import BenchmarkResult, pipeline_variant, run_benchmark
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.pipeline import Backend, Pipeline
from altermoma.errors import UnsupportedError


def bench_bundles(
    folders: Sequence[Path], backend: Backend, precision: str, *, rounds: int, threads: int
) -> BenchmarkResult:
    """Times bundles frame by frame in turn, on the reference frame of the first.

    Raises:
        UnsupportedError: fp16 on ONNX Runtime's CPU, where it is emulated and its latency means nothing.
    """
    if backend == "onnxruntime" and precision == "fp16":
        raise UnsupportedError(
            "fp16 is emulated by ONNX Runtime on the CPU: its latency means nothing",
            expected="fp32 on onnxruntime, or fp16 on tensorrt",
            remedy="run with --engine fp32, or on the target with --backend tensorrt",
        )
    bundles = [Bundle.open(folder) for folder in folders]
    variants = {
        str(bundle.folder): pipeline_variant(
            Pipeline.from_bundle(bundle, backend, precision=precision, threads=threads)
        )
        for bundle in bundles
    }
    return run_benchmark(
        variants, [bundles[0].reference().frame(bundles[0].manifest.name)], rounds=rounds, warmup=2, threads=threads
    )
