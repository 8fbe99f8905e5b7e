"""What `gpu_check` does with whole frames: the runtime that a vehicle uses, and the device kernels against the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.benchmark import summary
from altermoma.deploy.buckets import Buckets, Limits
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Cuda
from altermoma.deploy.device_feed import DeviceFeed
from altermoma.deploy.device_inputs import RawFrame
from altermoma.deploy.device_memory import Arena
from altermoma.deploy.pipeline import Pipeline, Preparation
from altermoma.deploy.reference import Reference
from altermoma.deploy.self_check import align_proposals, check_frame
from altermoma.deploy.stage_io import Arrays
from altermoma.deploy.tensorrt_backend import open_engines
from altermoma.ops.prepare import FramePreparer

WHOLE, THINNED = "whole", "thinned"
TURNS = ((WHOLE, 4), (THINNED, 3), (WHOLE, 2), (THINNED, 1))
"""Clouds and how many frames of each: queued as it is, captured, replayed; then both buckets' graphs in turn.

They share a profile, a scratch block and the graphs of the other lines. Every frame must be right."""

INT8_REPEATED = 5e-2
"""Allowed between two runs of one int8 engine, over the largest magnitude: as for fp16, in which its rest computes."""

EVERY = 8
"""Every so many points make the thinned cloud: of another bucket, with contexts of its own."""

KERNEL_RUNS = 20
KERNEL_WARMUP = 3

PREPARED = {"frame, host": "host", "frame, device": "device"}
"""Steps of a check and where they prepare frames."""

Record = dict[str, Any]


def frames_on_device(
    bundle: Bundle, reference: Reference, precision: str, preparation: Preparation
) -> tuple[Record, str]:
    """Several whole frames on two streams, with graphs; every one against the bundle's boxes, and its outputs against
    those of the same engines run one by one: untrained models find no box.

    Returns:
        What was found, and what is wrong with it, if anything.
    """
    pipeline = Pipeline.from_bundle(bundle, "tensorrt", precision=precision, preparation=preparation)
    device = pipeline.device
    if device is None:
        raise ValueError("a TensorRT pipeline runs whole frames")
    thin = dataclasses.replace(reference, points_p5=np.ascontiguousarray(reference.points_p5[::EVERY]))
    clouds = {WHOLE: reference, THINNED: thin}
    wanted = dict(zip(clouds, _stage_by_stage(bundle, precision, [*clouds.values()]), strict=True))
    # The same engines run twice: int8's own tolerance is for its noise against fp32.
    allowed = INT8_REPEATED if precision == "int8" else bundle.manifest.tolerances[precision]
    checks, turns, captures = [], list[Record](), list[dict[str, int]]()
    for cloud, frames in TURNS:
        apart = 0.0
        for _ in range(frames):
            if cloud == WHOLE:
                checks.append(check_frame(precision, pipeline, reference))
            apart = max(apart, _largest(wanted[cloud], device.run(_raw(clouds[cloud])).outputs, allowed))
        turns.append({"cloud": cloud, "frames": frames, "from_stages": apart})
        if frames > 1:  # one frame is queued as it is, where an engine holds one bucket at a time
            captures.append(device.captures())
    off = max(turn["from_stages"] for turn in turns)
    worst = min(checks, key=lambda check: (check.passed, check.matched, -check.centre_m))
    found = dataclasses.asdict(worst) | {
        "from_stages": off,
        "turns": turns,
        "captures": {line: min(counts[line] for counts in captures) for line in captures[0]},
        "refusals": device.refusals(),
        "memory_bytes": device.memory_bytes(),
        "right": worst.passed and off <= allowed,
    }
    return found, _complaint(found, passed=worst.passed, allowed=allowed)


def _complaint(found: Record, *, passed: bool, allowed: float) -> str:
    if not passed:
        return f"{found['matched']} of {found['boxes']} boxes found again, {found['centre_m']:.3f} m off"
    if not found["from_stages"] <= allowed:
        off = f"outputs are {found['from_stages']:.1e} off those of the engines run one by one, allowed {allowed:.0e}"
        wrong = [f"{turn['cloud']} cloud" for turn in found["turns"] if not turn["from_stages"] <= allowed]
        return f"{off}; wrong in turns: {', '.join(wrong)}"
    bare = {line for line, count in found["captures"].items() if not count} | set(found["refusals"])
    return f"no CUDA graph for {', '.join(sorted(bare))}: {found['refusals']}" if bare else ""


def _raw(reference: Reference) -> RawFrame:
    return RawFrame(images_vhw3=reference.images_vhw3, points_p5=reference.points_p5, calibration=reference.calibration)


def _stage_by_stage(bundle: Bundle, precision: str, references: Sequence[Reference]) -> list[Arrays]:
    """The last stage's outputs of the same engines, frame by frame, with copies in between."""
    stages = Pipeline(bundle.manifest.geometry, open_engines(bundle, precision))
    inputs = [stages.prepare(r.images_vhw3, r.points_p5, r.calibration)[0] for r in references]
    return [stages.run_stages(each) for each in inputs]


def _largest(wanted: Arrays, found: Arrays, allowed: float) -> float:
    """Largest difference of an output over its largest magnitude."""
    off = 0.0
    for got, want in align_proposals(wanted, found, allowed).values():
        difference = float((np.abs(got - want) / max(float(np.abs(want).max(initial=0.0)), 1e-12)).max(initial=0.0))
        off = max(off, difference if np.isfinite(got).all() else float("inf"))
    return off


def check_kernels(bundle: Bundle, reference: Reference, precision: str, cuda: Cuda) -> tuple[Record, str]:
    """Every graph input that the kernels make, against numpy's on the reference frame, and the kernels' time.

    Returns:
        Entries that differ by input, milliseconds by part; and what is wrong, if anything.

    Raises:
        UnsupportedError: no NVRTC, or a model that the kernels do not serve.
    """
    geometry = bundle.manifest.geometry
    limits = Limits.of_stages(bundle.stages(precision), geometry.lidar_levels + 1, pillars=geometry.lidar == "pillars")
    frame = _raw(reference)
    feed = DeviceFeed(cuda, geometry, limits, reference.calibration.image_hw, {})
    run = _KernelRun(cuda, feed, frame, geometry.image.cameras, (geometry.image.height, geometry.image.width))
    run.once()
    host = FramePreparer(geometry, Buckets(limits))
    wanted = host.prepare_parts(frame.images_vhw3, frame.points_p5, frame.calibration)
    differing = {name: _differing(array, wanted[name]) for name, array in run.results().items()}
    found: Record = {"differing": differing, "ms": run.times(), "host_ms": dict(host.timings_ms)}
    wrong = {name: count for name, count in differing.items() if count}
    return found, f"device kernels and numpy differ in {wrong}" if wrong else ""


def _differing(found: NDArray[Any], wanted: NDArray[Any]) -> int:
    """Entries that are not the same bits; all of them if the shapes are not even the same."""
    if found.shape != wanted.shape:
        return max(found.size, 1)
    return int((found != wanted).sum())


class _KernelRun:
    """The kernels of one frame, without engines."""

    def __init__(self, cuda: Cuda, feed: DeviceFeed, frame: RawFrame, views: int, image_hw: tuple[int, int]) -> None:
        self._cuda, self._feed, self._frame, self._stream = cuda, feed, frame, cuda.new_stream()
        shapes = {"images": (views, 3, *image_hw), "depth": (views, 1, *image_hw)}
        self._images = Arena(cuda, {n: (s, np.dtype(np.float32)) for n, s in shapes.items()}, mirrored=True)
        self._tables: Arena | None = None
        self._pool: Arena | None = None
        self._events = [cuda.new_event() for _ in range(5)]
        # Of the pooling tables without the counts that a new calibration needs before.
        parts = ("images and depth", "voxels and cells", "tables", "pooling tables")
        self._ms: dict[str, list[float]] = {part: [] for part in parts}

    def once(self) -> None:
        """One frame; its parts are timed by events."""
        cuda, feed, stream, events = self._cuda, self._feed, self._stream, self._events
        feed.begin(self._frame, stream)
        feed.camera(self._frame, self._images, stream)
        cuda.record(events[0], stream)
        feed.queue_camera(self._images, stream)
        cuda.record(events[1], stream)
        inputs = feed.measure(self._frame, stream)
        cuda.record(events[2], stream)
        if inputs is not None and inputs.source is feed:
            if self._tables is None:
                floats = {"voxels": np.dtype(np.float32)}
                specs = {n: (s, floats.get(n, np.dtype(np.int32))) for n, s in inputs.shapes.items()}
                self._tables = Arena(cuda, specs, mirrored=True)
            feed.queue_lidar(self._tables, stream)
        cuda.record(events[3], stream)
        pooling = feed.pooling(self._frame.calibration, stream)
        if self._pool is None:
            self._pool = Arena(cuda, {n: (s, np.dtype(np.int32)) for n, s in pooling.shapes.items()}, mirrored=True)
        feed.fill_pooling(self._pool, stream)
        cuda.record(events[4], stream)
        cuda.synchronise(stream)
        for part, first, second in zip(self._ms, events, events[1:], strict=False):
            self._ms[part].append(cuda.elapsed_ms(first, second))

    def results(self) -> dict[str, NDArray[Any]]:
        """What the last frame left, by graph input."""
        arenas = [arena for arena in (self._images, self._tables, self._pool) if arena is not None]
        for arena in arenas:
            arena.download(self._stream)
        self._cuda.synchronise(self._stream)
        return {name: arena.host(name).copy() for arena in arenas for name in arena.shapes}

    def times(self) -> Mapping[str, Any]:
        """Milliseconds of further frames."""
        for _ in range(KERNEL_WARMUP + KERNEL_RUNS):
            self.once()
        return {part: summary(np.asarray(ms[-KERNEL_RUNS:])) for part, ms in self._ms.items()}
