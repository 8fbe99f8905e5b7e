"""Work on bundles alone, as a vehicle does it: no torch, no data set."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altermoma.deploy.benchmark import Variant, pipeline_variant, run_benchmark
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cross_check import cross_check, require_agreement, same_graphs
from altermoma.deploy.engine_report import engine_table, require_sparse
from altermoma.deploy.pipeline import Backend, Pipeline, Preparation, open_stages
from altermoma.deploy.self_check import check_bundle, told_of
from altermoma.deploy.telemetry import machine, sampled
from altermoma.deploy.tensorrt_config import options_of
from altermoma.deploy.tensorrt_engines import engines_here
from altermoma.errors import RecipeError, UnsupportedError
from altermoma.recipe import BuilderRecipe, Precision, Sparsity


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """How bundles are timed.

    Attributes:
        precision: that every bundle holds.
        preparation: of frames on TensorRT, see `Pipeline.from_bundle`.
        rounds, warmup: measured and unmeasured runs of the reference frame.
        threads: CPU threads.
    """

    backend: Backend = "onnxruntime"
    precision: str = "fp32"
    preparation: Preparation = "auto"
    rounds: int = 20
    warmup: int = 3
    threads: int = 1


def bench_bundles(
    folders: Sequence[Path],
    plan: BenchPlan,
    *,
    others: Mapping[str, Variant] | None = None,
    gflops: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Times bundles frame by frame in turn, on the reference frame of the first.

    Args:
        folders: of the bundles; the first is what the others are held against.
        plan: how.
        others: variants beside the bundles, such as the torch model.
        gflops: by variant, where the bundle does not tell.

    Returns:
        JSON-able, as `altermoma.report.latency.latency_markdown` takes it.

    Raises:
        UnsupportedError: fp16 on ONNX Runtime's CPU, where it is emulated and its latency means nothing.
        RecipeError: two bundles of one name.
    """
    if plan.backend == "onnxruntime" and plan.precision == "fp16":
        raise UnsupportedError(
            "fp16 is emulated by ONNX Runtime on the CPU: its latency means nothing",
            expected="fp32 on onnxruntime, or fp16 on tensorrt",
            remedy="run with --engine fp32, or on the target with --backend tensorrt",
        )
    bundles = {name: Bundle.open(folder) for name, folder in zip(bundle_names(folders), folders, strict=True)}
    told = {name: found for name, bundle in bundles.items() if (found := bundle_gflops(bundle))}
    pipelines = {
        name: Pipeline.from_bundle(
            bundle, plan.backend, precision=plan.precision, threads=plan.threads, preparation=plan.preparation
        )
        for name, bundle in bundles.items()
    }
    variants: dict[str, Variant] = {name: pipeline_variant(pipeline) for name, pipeline in pipelines.items()}
    first = next(iter(bundles))
    frame = bundles[first].reference().frame(first)
    gpu: dict[str, Any] = {}
    with sampled(gpu):
        result = run_benchmark(
            variants | dict(others or {}), [frame], rounds=plan.rounds, warmup=plan.warmup, threads=plan.threads
        )
    prepared = {name: p.device.feed.preparation for name, p in pipelines.items() if p.device is not None}
    return result.to_dict() | {
        "plan": dataclasses.asdict(plan),
        "dense": first,
        "gflops": told | dict(gflops or {}),
        "gpu": gpu,
        "machine": machine(),
        "markdown": result.to_markdown(),
        "points": len(frame.points_p5),
        "prepared": prepared,
    }


def bundle_names(folders: Sequence[Path]) -> list[str]:
    """Short names that tell bundles apart.

    Raises:
        RecipeError: two folders of one name.
    """
    resolved = [folder.resolve() for folder in folders]
    names = [path.name for path in resolved]
    if len({*names}) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in resolved]
    if len({*names}) < len(names):
        raise RecipeError(f"bundle folders {', '.join(map(str, folders))}", expected="each once")
    return names


def bundle_gflops(bundle: Bundle) -> float | None:
    """What the bundle's record says of its model, None where it says nothing."""
    metrics = bundle.manifest.metrics
    if "total" in metrics.get("flops", {}):
        return float(metrics["flops"]["total"]) / 1e9
    found = next((metrics[key]["gflops"] for key in ("pruned", "dense") if "gflops" in metrics.get(key, {})), None)
    return None if found is None else float(found)


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
    return "\n".join(
        [engine_table(built, bundle.manifest.stages), "", *(_against_onnxruntime(bundle, each) for each in precisions)]
    )


def _against_onnxruntime(bundle: Bundle, precision: str) -> str:
    """One line on how far engines are from ONNX Runtime, where that is installed.

    Raises:
        EngineError: they differ by more than the tolerance.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return f"{precision}: onnxruntime is not installed here; engines were held against the bundle's reference alone"
    if any(record.numbers == "fp8" for record in bundle.stages(precision).values()):
        return (
            f"{precision}: ONNX Runtime has no kernels for fp8; engines were held against the bundle's reference alone"
        )
    here, there = open_stages(bundle, "tensorrt", precision), same_graphs(bundle, precision)
    checks = cross_check(precision, here, there, bundle.reference(), bundle.manifest.tolerances[precision])
    require_agreement(checks)
    worst = max(checks, key=lambda check: check.difference / check.allowed)
    return (
        f"{precision}: engines agree with the reference frame and, by {worst.judge}, with ONNX Runtime; the worst"
        f" output is {worst.stage}.{worst.tensor}: {told_of(worst.measure, worst.difference, worst.allowed)}"
    )
