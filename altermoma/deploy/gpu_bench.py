"""Whole frames of checked engines, interleaved in one process, within a given time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from altermoma.deploy.benchmark import FRAME, Variant, pipeline_variant, run_benchmark
from altermoma.deploy.bundle import MANIFEST_FILE, Bundle
from altermoma.deploy.gpu_check import Variant as Checked
from altermoma.deploy.gpu_check import pardoned
from altermoma.deploy.gpu_frames import PREPARED
from altermoma.deploy.manifest import from_text
from altermoma.deploy.pipeline import Pipeline, Preparation
from altermoma.deploy.telemetry import sampled
from altermoma.deploy.tensorrt_backend import open_engines
from altermoma.errors import EngineError
from altermoma.storage import content_key

TRIAL_ROUNDS = 5
STAGEWISE = "stage by stage"

MAX_ROUNDS = 1000
"""p99 of a thousand frames has ten beyond it."""


def ready(checked: Sequence[Checked]) -> list[Checked]:
    """Those whose whole frame ran on engines, right or wrong: an engine beyond its tolerance is timed, and marked."""
    return [variant for variant in checked if "matched" in variant.read().get("steps", {}).get("frame", {})]


def bench_key(checked: Sequence[Checked], *, seconds: float, threads: int) -> str:
    """Changes with the engines and with how they are timed."""
    of = [(v.folder.name, v.read().get("key", ""), way_of(v), _plans(v)) for v in ready(checked)]
    return content_key({"variants": of, "seconds": seconds, "threads": threads})


def _plans(checked: Checked) -> dict[str, str]:
    """SHA-256 of a variant's plans by stage, as recorded."""
    file = checked.bundle / MANIFEST_FILE
    built = from_text(file.read_text("utf-8"), str(file)).engines.built
    return {record.stage: record.sha256 for record in built if record.precision == checked.precision}


def way_of(checked: Checked) -> str:
    """How frames of a variant are run: as far from the host as was found to be right, captured or not."""
    steps = checked.read().get("steps", {})
    right = [way for step, way in PREPARED.items() if steps.get(step, {}).get("right")]
    return right[-1] if right else STAGEWISE


def bench_pipeline(checked: Checked, bundle: Bundle) -> Pipeline:
    """A pipeline that runs frames in that way."""
    way = way_of(checked)
    if way == STAGEWISE:
        return Pipeline(bundle.manifest.geometry, open_engines(bundle, checked.precision))
    return Pipeline.from_bundle(bundle, "tensorrt", precision=checked.precision, preparation=cast(Preparation, way))


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
    bundles = {variant.folder.name: pardoned(Bundle.open(variant.bundle)) for variant in able}
    first = bundles[able[0].folder.name]
    frame = first.reference().frame(first.manifest.name)
    pipelines: Mapping[str, Variant] = {
        v.folder.name: pipeline_variant(bench_pipeline(v, bundles[v.folder.name])) for v in able
    }
    trial = run_benchmark(pipelines, [frame], rounds=TRIAL_ROUNDS, warmup=3, threads=threads)
    turn_s = sum(trial.latency_ms(name)[FRAME]["p50"] for name in pipelines) / 1e3
    rounds = max(TRIAL_ROUNDS, min(MAX_ROUNDS, int(seconds / max(turn_s, 1e-6))))
    gpu: dict[str, Any] = {}
    with sampled(gpu):
        result = run_benchmark(pipelines, [frame], rounds=rounds, warmup=TRIAL_ROUNDS, threads=threads)
    key = bench_key(checked, seconds=seconds, threads=threads)
    return result.to_dict() | {
        "key": key,
        "gpu": gpu,
        "markdown": result.to_markdown(),
        "points": len(frame.points_p5),
        "ways": {v.folder.name: way_of(v) for v in able},
    }
