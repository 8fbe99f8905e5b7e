"""Whole frames of checked engines, interleaved in one process, within a given time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altermoma.deploy.benchmark import FRAME, Variant, pipeline_variant, run_benchmark
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.gpu_check import Variant as Checked
from altermoma.deploy.pipeline import Pipeline
from altermoma.deploy.telemetry import sampled
from altermoma.errors import EngineError
from altermoma.storage import content_key

TRIAL_ROUNDS = 5
MAX_ROUNDS = 1000
"""p99 of a thousand frames has ten beyond it."""


def ready(checked: Sequence[Checked]) -> list[Checked]:
    """Those whose whole frame ran on engines, right or wrong: an engine beyond its tolerance is timed, and marked."""
    return [variant for variant in checked if "matched" in variant.read().get("steps", {}).get("frame", {})]


def bench_key(checked: Sequence[Checked], *, seconds: float, threads: int) -> str:
    """Changes with the engines and with how they are timed."""
    of = [(variant.folder.name, variant.read().get("key", "")) for variant in ready(checked)]
    return content_key({"variants": of, "seconds": seconds, "threads": threads})


def bench_variants(checked: Sequence[Checked], *, seconds: float, threads: int) -> dict[str, Any]:
    """Times every variant on the reference frame of the first, in turn.

    Args:
        checked: of one model, so that the frame fits all; those that never ran a frame are left out.
        seconds: about how long to measure; as many rounds as fit, at most `MAX_ROUNDS`.
        threads: CPUs that the process is kept on.

    Returns:
        JSON-able: latencies by variant and part, conditions, what the GPU did meanwhile, `markdown`, `key`.

    Raises:
        EngineError: nothing to time, or an engine that does not load.
    """
    able = ready(checked)
    if not able:
        raise EngineError("no variant ran a whole frame: there is nothing to time")
    bundles = {variant.folder.name: Bundle.open(variant.bundle) for variant in able}
    first = bundles[able[0].folder.name]
    frame = first.reference().frame(first.manifest.name)
    pipelines: Mapping[str, Variant] = {
        v.folder.name: pipeline_variant(
            Pipeline.from_bundle(bundles[v.folder.name], "tensorrt", precision=v.precision, threads=threads)
        )
        for v in able
    }
    trial = run_benchmark(pipelines, [frame], rounds=TRIAL_ROUNDS, warmup=3, threads=threads)
    turn_s = sum(trial.latency_ms(name)[FRAME]["p50"] for name in pipelines) / 1e3
    rounds = max(TRIAL_ROUNDS, min(MAX_ROUNDS, int(seconds / max(turn_s, 1e-6))))
    gpu: dict[str, Any] = {}
    with sampled(gpu):
        result = run_benchmark(pipelines, [frame], rounds=rounds, warmup=TRIAL_ROUNDS, threads=threads)
    key = bench_key(checked, seconds=seconds, threads=threads)
    return result.to_dict() | {"key": key, "gpu": gpu, "markdown": result.to_markdown(), "points": len(frame.points_p5)}
