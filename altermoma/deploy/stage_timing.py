"""Runs the stages of a model at several widths, on the machine that will run it: no torch, no onnx, no data set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.benchmark import conditions, pinned_threads
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.onnxruntime_backend import OnnxRuntimeStage
from altermoma.deploy.pipeline import Backend
from altermoma.deploy.self_check import reference_inputs
from altermoma.deploy.stage_io import Arrays
from altermoma.deploy.stage_tables import LATENCY_FILE, MeasuredTables, StageTimes, WidthSet, identity_of
from altermoma.deploy.telemetry import machine, sampled
from altermoma.deploy.tensorrt_api import import_tensorrt
from altermoma.deploy.tensorrt_backend import TensorRtStage, open_engines
from altermoma.deploy.tensorrt_config import options_of
from altermoma.deploy.tensorrt_engines import device_here, engines_here, why_not
from altermoma.errors import BundleError, EngineError, UnsupportedError
from altermoma.progress import track

RUNS = 5
"""Of an engine in one turn: what a stage takes right after another one's data is in it, but not in it alone."""

Bundles = Mapping[str, Bundle]
"""By folder name, the dense model first."""

Timed = Callable[[], NDArray[np.float64]]
"""Runs one stage of one width; milliseconds of each run."""


@dataclass(frozen=True, kw_only=True)
class TimingPlan:
    """How stages are timed.

    Attributes:
        precision: of the graphs; None takes what the bundles were written for.
        rounds: turns of every width.
        warmup: turns before, not counted.
    """

    backend: Backend = "tensorrt"
    precision: str | None = None
    rounds: int = 20
    warmup: int = 2


def measure_tables(folder: Path, plan: TimingPlan) -> MeasuredTables:
    """Builds the engines that are missing, times every stage at every width, and leaves `latency.json` in the folder.

    A kill costs the engine that is being built; timing itself is a matter of seconds and starts anew.

    Args:
        folder: that `altermoma tables write` left.
        plan: how.

    Raises:
        BundleError: another folder, or one with a bundle that is missing, altered, or of another folder.
        EngineError: no GPU with TensorRT, or an engine that does not build or is not what was asked for.
        UnsupportedError: fp16 on ONNX Runtime's CPU, where it is emulated and its latency means nothing.
    """
    widths = WidthSet.read(folder)
    precision = plan.precision or widths.served.precision
    if plan.backend == "onnxruntime" and precision == "fp16":
        raise UnsupportedError(
            "fp16 is emulated by ONNX Runtime on the CPU: its latency means nothing",
            expected="fp32 or int8 on onnxruntime, or fp16 on tensorrt",
            remedy="give --engine fp32, and prune with precision = 'fp32' under [engine]; or measure on the target",
        )
    bundles = open_widths(folder, widths, precision)
    if plan.backend == "tensorrt":
        bundles = _with_engines(bundles, precision)
    gpu: dict[str, Any] = {}
    launched: dict[str, dict[str, str]] = {}
    with sampled(gpu), pinned_threads(1):
        found = {
            stage: _time_stage(bundles, stage, precision, plan, launched)
            for stage in track(widths.flops, "Timing stages")
        }
    measured = _measured(widths, precision, plan.backend, found)
    runs = {name: len(times) for name, times in next(iter(found.values())).items()}
    about = {"rounds": plan.rounds, "runs": runs, "conditions": conditions(1), "machine": machine(), "gpu": gpu}
    about |= {"launched": launched} if launched else {}
    measured = dataclasses.replace(measured, about=about)
    measured.write(folder / LATENCY_FILE)
    return measured


def _with_engines(bundles: Bundles, precision: str) -> dict[str, Bundle]:
    reason = why_not()
    if reason:
        raise EngineError(
            f"stages cannot be timed on TensorRT here: {reason}",
            expected="the machine that will run the pruned model, with an NVIDIA GPU and TensorRT",
            remedy="carry the folder there and give the same command, or --backend onnxruntime for this processor",
        )
    return {
        name: engines_here(bundle, options_of(bundle.manifest, precision), build="require")
        for name, bundle in bundles.items()
    }


def _measured(
    widths: WidthSet, precision: str, backend: Backend, found: Mapping[str, dict[str, NDArray[np.float64]]]
) -> MeasuredTables:
    # fp32 engines are dense ones.
    sparsity = widths.served.sparsity if precision != "fp32" else "dense"
    return MeasuredTables(
        model=widths.model,
        served=dataclasses.replace(widths.served, precision=precision, sparsity=sparsity),
        flops=widths.flops,
        device=device_here() if backend == "tensorrt" else str(conditions(1)["processor"]),
        runtime=_runtime(backend),
        widths=tuple(width.name for width in widths.widths),
        stages={
            stage: StageTimes(
                shares=tuple(width.shares[stage] for width in widths.widths),
                ms=tuple(float(np.median(times[width.name])) for width in widths.widths),
                least=tuple(float(times[width.name].min()) for width in widths.widths),
            )
            for stage, times in found.items()
        },
    )


def open_widths(folder: Path, widths: WidthSet, precision: str) -> dict[str, Bundle]:
    """The bundles of a set, each checked to be what the set says and to hold the precision.

    Raises:
        BundleError: names the one that is not.
    """
    bundles = {}
    for width in widths.widths:
        bundle = bundles[width.name] = Bundle.open(folder / width.name)
        if identity_of(bundle.manifest) != width.identity:
            raise BundleError(
                f"{bundle.folder} is not the bundle that was written with these tables",
                expected="the bundles of one `altermoma tables write`, side by side as it left them",
                remedy="copy the whole folder again",
            )
        missing = sorted(width.shares.keys() - bundle.stages(precision).keys())
        if missing:
            raise BundleError(
                f"{bundle.folder} has no stage {', '.join(missing)}",
                expected=", ".join(width.shares),
                remedy="write the tables again: altermoma tables write",
            )
    return bundles


def _time_stage(
    bundles: Bundles, stage: str, precision: str, plan: TimingPlan, launched: dict[str, dict[str, str]]
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of all counted runs by width; the widths take turns, in an order that rotates.

    `launched` gains, by stage and width, why an engine was not timed as a captured graph.
    """
    if plan.backend == "onnxruntime":
        timed = {name: _on_processor(bundle, stage, precision) for name, bundle in bundles.items()}
        return interleaved(timed, rounds=plan.rounds, warmup=plan.warmup)
    engines = {name: open_engines(bundle, precision, only=[stage])[stage] for name, bundle in bundles.items()}
    timed = {name: _on_device(engine, bundles[name]) for name, engine in engines.items()}
    found = interleaved(timed, rounds=plan.rounds, warmup=plan.warmup)
    why = {name: engine.uncaptured for name, engine in engines.items() if engine.uncaptured}
    launched.update({stage: why} if why else {})
    return found


def interleaved(timed: Mapping[str, Timed], *, rounds: int, warmup: int) -> dict[str, NDArray[np.float64]]:
    """Lets every one run in every round, and joins what the counted rounds gave."""
    names = list(timed)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            ms = timed[name]()
            if turn >= warmup:
                found[name].append(ms)
    return {name: np.concatenate(ms) for name, ms in found.items()}


def _on_device(engine: TensorRtStage, bundle: Bundle) -> Timed:
    """One engine on the bundle's own reference frame, without its copies."""
    fed = reference_inputs(engine.record, bundle.reference())
    engine.run(fed)
    return lambda: engine.execution_ms(fed, RUNS)


def _on_processor(bundle: Bundle, stage: str, precision: str) -> Timed:
    """One stage in ONNX Runtime on the bundle's own reference frame, in processor time."""
    record = bundle.stages_for("onnxruntime", precision)[stage]
    session = OnnxRuntimeStage(bundle.graph(record), record, threads=1)
    inputs = reference_inputs(record, bundle.reference())
    return lambda: _processor_ms(session, inputs)


def _processor_ms(session: OnnxRuntimeStage, inputs: Arrays) -> NDArray[np.float64]:
    """Of the only thread: on a machine that others use, the wall's clock would count them too."""
    started = time.process_time()
    session.run(inputs)
    return np.array([1e3 * (time.process_time() - started)])


def _runtime(backend: Backend) -> str:
    if backend == "tensorrt":
        return f"TensorRT {import_tensorrt().__version__}"
    return f"ONNX Runtime {conditions(1)['versions'].get('onnxruntime', '')}".strip()
