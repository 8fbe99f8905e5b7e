"""Whole-frame latency of several variants, interleaved in one process so that all meet the same machine.

A variant is a callable per frame: a pipeline (its parts are timed), or anything else, such as the torch model. Every
round runs every frame through every variant, in an order that rotates from frame to frame.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.bundle import library_versions
from altermoma.deploy.pipeline import PARTS, Pipeline
from altermoma.errors import RecipeError
from altermoma.frames import Frame
from altermoma.progress import track

Variant = Callable[[Frame], Mapping[str, float] | None]
"""Runs one frame; may give milliseconds by part. The whole call is timed as `frame`."""

FRAME = "frame"
PROCESSOR = "processor"
"""Processor time of the whole process during a frame: what the host spends, whatever else the machine does."""

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
_TASKS = "/proc/self/task"


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """Milliseconds by variant and part (`frame` is the whole), one per frame and round."""

    samples: dict[str, dict[str, NDArray[np.float64]]]
    frames: int
    rounds: int
    warmup: int
    conditions: dict[str, Any]

    def latency_ms(self, variant: str) -> dict[str, dict[str, float]]:
        """p50, p90, p99, max and mean by part."""
        return {part: summary(ms) for part, ms in self.samples[variant].items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: conditions and `latency_ms` per variant."""
        return {
            "frames": self.frames,
            "rounds": self.rounds,
            "warmup": self.warmup,
            "conditions": self.conditions,
            "variants": {name: {"latency_ms": self.latency_ms(name)} for name in self.samples},
        }

    def to_markdown(self) -> str:
        """Parts as rows, variants as columns."""
        names = list(self.samples)
        seen = dict.fromkeys(part for name in names for part in self.samples[name])
        parts = [p for p in PARTS if p in seen]
        parts += [p for p in seen if p not in {*PARTS, FRAME, PROCESSOR}] + [FRAME, PROCESSOR]
        lines = ["| ms (p50 / p90 / p99 / max) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for part in parts:
            cells = [_cell(self.samples[name].get(part)) for name in names]
            lines.append(f"| {part} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def pipeline_variant(pipeline: Pipeline) -> Variant:
    """A pipeline as a variant: raw sensor arrays to boxes."""

    def run(frame: Frame) -> Mapping[str, float]:
        return pipeline(frame.images_vhw3, frame.points_p5, frame.calibration).timings_ms

    return run


def run_benchmark(
    variants: Mapping[str, Variant], frames: Sequence[Frame], *, rounds: int = 5, warmup: int = 1, threads: int = 1
) -> BenchmarkResult:
    """Times every variant on every frame.

    Args:
        variants: by name, in the order of the tables.
        frames: raw frames; reading them is not timed.
        rounds: measured passes over all frames.
        warmup: passes before, not counted.
        threads: what the variants were built with; recorded, and set for OpenMP and BLAS libraries yet to load.

    Raises:
        RecipeError: nothing to run.
    """
    if not variants or not frames or rounds < 1:
        raise RecipeError(
            f"a benchmark of {len(variants)} variants, {len(frames)} frames and {rounds} rounds",
            expected="at least one of each",
        )
    names = list(variants)
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    with pinned_threads(threads):
        for turn in track(range((warmup + rounds) * len(frames)), "benchmark"):
            frame = frames[turn % len(frames)]
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                parts = _timed(variants[name], frame)
                if turn >= warmup * len(frames):
                    _append(samples[name], parts)
    return BenchmarkResult(
        samples={name: {part: np.asarray(ms) for part, ms in parts.items()} for name, parts in samples.items()},
        frames=len(frames),
        rounds=rounds,
        warmup=warmup,
        conditions=conditions(threads),
    )


def summary(ms: NDArray[np.float64]) -> dict[str, float]:
    """p50, p90, p99, max and mean of a list of milliseconds."""
    values = {name: float(np.percentile(ms, q)) for name, q in PERCENTILES.items()}
    return {**values, "max": float(ms.max()), "mean": float(ms.mean())}


def realised_share(ms_dense: float, ms_pruned: float, flops_reduction: float) -> float:
    """R: share of the removed FLOPs that shows as removed time. The paper's is 0.52 at 50 %.

    Args:
        ms_dense: latency before pruning.
        ms_pruned: latency of the same parts on the same machine after it.
        flops_reduction: share of FLOPs removed from these parts, above 0.

    Raises:
        RecipeError: nothing was removed, so that R has no meaning.
    """
    if flops_reduction <= 0.0 or ms_dense <= 0.0:
        raise RecipeError(f"R of {ms_dense} ms dense at a FLOP reduction of {flops_reduction}", expected="both above 0")
    return (1.0 - ms_pruned / ms_dense) / flops_reduction


@contextlib.contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Keeps every thread of the process, old and new, on as many CPUs, where the system lets it; undone afterwards.

    Libraries that load inside read OMP_NUM_THREADS; those that are loaded already keep their number of threads: for
    ONNX Runtime pass `threads` to the pipeline, for torch call its set_num_threads.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    before = _affinities()
    allowed = before.get(threading.get_native_id(), set())
    if len(allowed) > threads:
        _pin({thread: set(sorted(allowed)[-threads:]) for thread in before})
    try:
        yield
    finally:
        if len(allowed) > threads:
            # Threads born inside took over the pin of their parent.
            _pin({thread: before.get(thread, allowed) for thread in _affinities()})
        if given is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = given


def _affinities() -> dict[int, set[int]]:
    """CPUs by thread of this process; empty where the system does not tell (not Linux)."""
    found: dict[int, set[int]] = {}
    if hasattr(os, "sched_getaffinity") and os.path.isdir(_TASKS):
        for thread in map(int, os.listdir(_TASKS)):
            with contextlib.suppress(ProcessLookupError):
                found[thread] = os.sched_getaffinity(thread)
    return found


def _pin(cpus: Mapping[int, set[int]]) -> None:
    """Threads that have ended meanwhile and systems that forbid it are left alone."""
    for thread, wanted in cpus.items():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.sched_setaffinity(thread, wanted)


def conditions(threads: int) -> dict[str, Any]:
    """What the numbers depend on: processor, threads, load, clock where readable, versions."""
    record: dict[str, Any] = {
        "processor": _cpuinfo("model name", "unknown"),
        "cpus": os.cpu_count(),
        "threads": threads,
    }
    clock = _cpuinfo("cpu MHz", "")
    if clock:
        record["clock_mhz"] = round(float(clock))
    record["versions"] = library_versions(("altermoma", "numpy", "onnxruntime", "tensorrt", "torch"))
    if hasattr(os, "getloadavg"):
        record["load_1min"] = round(os.getloadavg()[0], 2)
    return record


def _timed(variant: Variant, frame: Frame) -> dict[str, float]:
    started, busy = time.perf_counter(), time.process_time()
    parts = variant(frame) or {}
    whole, used = time.perf_counter() - started, time.process_time() - busy
    return {**parts, FRAME: whole * 1e3, PROCESSOR: used * 1e3}


def _append(samples: dict[str, list[float]], parts: Mapping[str, float]) -> None:
    for part, ms in parts.items():
        samples.setdefault(part, []).append(ms)


def _cell(ms: NDArray[np.float64] | None) -> str:
    if ms is None:
        return ""
    values = summary(ms)
    return " / ".join(f"{values[key]:.1f}" for key in (*PERCENTILES, "max"))


def _cpuinfo(field: str, otherwise: str) -> str:
    """Of the first processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            found = [line.partition(":")[2].strip() for line in stream if line.startswith(field)]
    except OSError:
        found = []
    return found[0] if found else otherwise
