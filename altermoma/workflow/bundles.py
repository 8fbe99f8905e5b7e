"""Work on bundles alone, as a vehicle does it: no torch, no data set."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from altermoma.deploy.benchmark import BenchmarkResult, pipeline_variant, run_benchmark
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cross_check import cross_check, require_agreement
from altermoma.deploy.engine_report import engine_table, require_sparse
from altermoma.deploy.pipeline import Backend, Pipeline, open_stages
from altermoma.deploy.self_check import check_bundle
from altermoma.deploy.tensorrt_config import options_of
from altermoma.deploy.tensorrt_engines import engines_here
from altermoma.errors import RecipeError, UnsupportedError
from altermoma.recipe import BuilderRecipe, Precision, Sparsity


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


def build_bundle(
    folder: Path, asked: BuilderRecipe, *, precision: Precision | None = None, sparsity: Sparsity | None = None
) -> str:
    """Builds and verifies the engines of a bundle here: precision, sparsity, its own reference, ONNX Runtime.

    Args:
        folder: of the bundle, which gains `engines/`.
        asked: builder options beside those that the bundle brings.
        precision: to build; without it every one that the bundle holds.
        sparsity: "dense" builds dense engines of a 2:4 bundle; without it, what the bundle is.

    Returns:
        What was asked for and what was found, as a table.

    Raises:
        EngineError: no GPU with TensorRT, or an engine that is not what was asked for.
        RecipeError: 2:4 engines of a bundle whose weights are dense.
    """
    bundle = Bundle.open(folder)
    if sparsity == "2:4" and bundle.manifest.sparsity.get("asked") != "2:4":
        raise RecipeError(
            f"--sparsity 2:4 for {folder}, whose weights are dense",
            expected="a bundle that was exported with --sparsity 2:4",
            remedy="leave the option out, or prune and export again: altermoma-export --sparsity 2:4",
        )
    precisions = (precision,) if precision is not None else bundle.manifest.precisions
    for each in precisions:
        bundle.stages(each)
        options = options_of(bundle.manifest, each, asked)
        if sparsity == "dense":
            options = dataclasses.replace(options, sparsity="dense")
        bundle = engines_here(bundle, options, build="require")
    built = [record for record in bundle.manifest.engines.built if record.precision in precisions]
    require_sparse(built)
    check_bundle(bundle, "tensorrt").require()
    return "\n".join([engine_table(built), "", *(_against_onnxruntime(bundle, each) for each in precisions)])


def _against_onnxruntime(bundle: Bundle, precision: str) -> str:
    """One line on how far engines are from ONNX Runtime, where that is installed.

    Raises:
        EngineError: they differ by more than the tolerance.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return f"{precision}: onnxruntime is not installed here; engines were held against the bundle's reference alone"
    here, there = (open_stages(bundle, backend, precision, threads=1) for backend in ("tensorrt", "onnxruntime"))
    checks = cross_check(precision, here, there, bundle.reference(), bundle.manifest.tolerances[precision])
    require_agreement(checks)
    worst = max(checks, key=lambda check: check.difference / check.allowed)
    return (
        f"{precision}: engines agree with the reference frame and, by {worst.judge}, with ONNX Runtime; the worst"
        f" output is {worst.stage}.{worst.tensor}, off by {worst.difference:.1e} of {worst.allowed:.0e} allowed"
    )
