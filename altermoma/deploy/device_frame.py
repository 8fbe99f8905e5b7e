"""A whole frame on the device: two streams, every buffer allocated once, CUDA graphs, no copies between stages.

    camera stream   pictures, depth -> camera -> view ---------------------> fusion -> head -> answer
    LiDAR stream    points -> cells -> tables -> lidar ------ event --------^

The work falls into three lines, each on one stream: camera and view; tables and lidar; fusion and head. A line is
queued as it is the first time, which also brings TensorRT's contexts up to date, captured the second time and replayed
from then on. Every graph has execution contexts of its own, as TensorRT asks for. Shapes that change from frame to
frame are those of buckets (`altermoma.deploy.buckets`), each with its own graph; those of the pooling tables change
with the calibration, and the camera line is captured again only if their shape does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from altermoma.deploy.buckets import MOST
from altermoma.deploy.cuda_driver import DeviceBuffer
from altermoma.deploy.device_inputs import Feed, FrameAnswer, LidarInputs, RawFrame
from altermoma.deploy.device_memory import Arena
from altermoma.deploy.engines import BoundEngine, Shape, StageEngine
from altermoma.deploy.graph_line import Line
from altermoma.deploy.manifest import STAGES
from altermoma.deploy.stage_io import Arrays
from altermoma.errors import EngineError
from altermoma.frames import Calibration

LINES = {"camera": ("camera", "view"), "lidar": ("lidar",), "head": ("fusion", "head")}
"""Stages that are queued together, by what a frame's timings call them."""

LINE_PARTS = {"camera": "camera + view", "lidar": "lidar line", "head": "fusion + head"}
"""How the timings call the lines: device time, of which the first two overlap."""


@dataclass(kw_only=True)
class _Bucket:
    """LiDAR inputs of one shape, and what is captured for it."""

    arena: Arena
    line: Line


@dataclass(kw_only=True)
class _Pool:
    """Pooling tables on the device, and the version of them that is there; -1 for none yet."""

    arena: Arena
    line: Line
    version: int = -1


class DeviceFrame:
    """Runs whole frames on the engines of one bundle. Not thread-safe.

    Args:
        engines: one per stage of `STAGES`, all of one `Cuda`.
        feed: makes the graph inputs.

    Raises:
        EngineError: stages that do not fit together, or too little memory.
    """

    def __init__(self, engines: Mapping[str, StageEngine], feed: Feed) -> None:
        self.feed, self._engines = feed, engines
        self._cuda = cuda = engines["camera"].cuda
        self._streams = {"camera": cuda.new_stream(), "lidar": cuda.new_stream()}
        self._streams["head"] = self._streams["camera"]
        marks = ("begun", "cloud", "lidar begun", *LINES)
        self._events = {mark: cuda.new_event() for mark in marks}
        produced = {spec.name for engine in engines.values() for spec in engine.record.outputs}
        self._given = {
            name: [spec for spec in engine.record.inputs if spec.name not in produced]
            for name, engine in engines.items()
        }
        self._scratch = {line: self._scratch_of(stages) for line, stages in LINES.items() if line != "head"}
        self._scratch["head"] = self._scratch["camera"]
        specs = self._handed()
        last = [spec.name for spec in engines[STAGES[-1]].record.outputs]
        self._between = Arena(cuda, {name: spec for name, spec in specs.items() if name not in last}, mirrored=False)
        self._answer = Arena(cuda, {name: specs[name] for name in last}, mirrored=True)
        camera = {
            spec.name: (self._fixed("camera", spec.name), self._dtype(spec.name)) for spec in self._given["camera"]
        }
        self._images = Arena(cuda, camera, mirrored=feed.preparation == "host")
        self._pool: _Pool | None = None
        self._buckets: dict[tuple[Any, ...], _Bucket] = {}
        self._head = self._line("head", [self._bind(stage, {}) for stage in LINES["head"]], self._answer.download)

    def run(self, frame: RawFrame) -> FrameAnswer:
        """One frame; after a failure the next one is as good as any.

        Raises:
            EngineError: TensorRT or CUDA failed, or a frame beyond what the engines were built for.
        """
        self._cuda.enter()
        try:
            return self._run(frame)
        except Exception:
            # What is under way still reads the buffers that the next frame is written to.
            for stream in {*self._streams.values()}:
                self._cuda.synchronise(stream)
            raise

    def _run(self, frame: RawFrame) -> FrameAnswer:
        cuda, camera, lidar = self._cuda, self._streams["camera"], self._streams["lidar"]
        cuda.record(self._events["begun"], camera)
        self._begin(frame)
        pool = self._pooling(frame.calibration, camera)
        self.feed.camera(frame, self._images, camera)
        pool.line.run()
        cuda.record(self._events["camera"], camera)

        inputs = self.feed.measure(frame, lidar)
        cuda.record(self._events["lidar begun"], lidar)
        if inputs is None:
            self._between.clear("lidar_bev", lidar)
        else:
            bucket = self._bucket(inputs)
            inputs.source.lidar(bucket.arena, lidar)
            bucket.line.run()
        cuda.record(self._events["lidar"], lidar)

        cuda.wait(camera, self._events["lidar"])
        self._head.run()
        cuda.record(self._events["head"], camera)
        cuda.wait_here(self._events["head"])
        return FrameAnswer(
            outputs=self._outputs(),
            timings_ms={**self.feed.timings_ms, **self._timings(seen=inputs is not None)},
            dropped=self.feed.dropped,
            seen=inputs is not None,
        )

    def captures(self) -> dict[str, int]:
        """Graphs captured for what is held now, by line; buckets together."""
        return {
            "camera": self._pool.line.captures if self._pool else 0,
            "lidar": sum(bucket.line.captures for bucket in self._buckets.values()),
            "head": self._head.captures,
        }

    def refusals(self) -> dict[str, str]:
        """Lines that run without a graph, and why."""
        lines = [("head", self._head), *(("lidar", bucket.line) for bucket in self._buckets.values())]
        lines += [("camera", self._pool.line)] if self._pool else []
        return {name: line.refused for name, line in lines if line.refused}

    def memory_bytes(self) -> int:
        """Device memory held beside the engines' weights."""
        arenas = [self._between, self._answer, self._images, *(b.arena for b in self._buckets.values())]
        scratch = self._scratch["camera"].size + self._scratch["lidar"].size
        return sum(a.size for a in arenas) + scratch + (self._pool.arena.size if self._pool else 0)

    def _begin(self, frame: RawFrame) -> None:
        """The cloud goes up on the LiDAR stream; device kernels of the camera stream need it too."""
        remade = True
        try:
            remade = self.feed.begin(frame, self._streams["lidar"])
        finally:
            # Also where it failed: its buffers may be others by then, and what was captured reads the old ones.
            if remade:
                self._pool = None
                self._buckets.clear()
        if self.feed.preparation == "device":
            self._cuda.record(self._events["cloud"], self._streams["lidar"])
            self._cuda.wait(self._streams["camera"], self._events["cloud"])

    def _pooling(self, calibration: Calibration, stream: int) -> _Pool:
        inputs = self.feed.pooling(calibration, stream)
        if self._pool is None or self._pool.arena.shapes != dict(inputs.shapes):
            # First the old one: on TensorRT 8.5 its context is the only one that may live.
            self._pool = None
            specs = {name: (shape, self._dtype(name)) for name, shape in inputs.shapes.items()}
            arena = Arena(self._cuda, specs, mirrored=self.feed.preparation == "host")
            bound = [self._bind("camera", {}), self._bind("view", arena.addresses(), arena.shapes)]
            # Not a method of this object, which would hold itself by it: dropped frames leave the device at once.
            feed, images = self.feed, self._images
            line = self._line("camera", bound, None, lambda stream: feed.queue_camera(images, stream))
            self._pool = _Pool(arena=arena, line=line)
        if self._pool.version != inputs.version:
            self.feed.fill_pooling(self._pool.arena, stream)
            self._pool.version = inputs.version
        return self._pool

    def _bucket(self, inputs: LidarInputs) -> _Bucket:
        shapes, source = inputs.shapes, inputs.source
        key = (source.preparation, *shapes.items())
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            room = 0 if self._engines["lidar"].sole else MOST - 1
            for old in [*self._buckets][: max(len(self._buckets) - room, 0)]:
                del self._buckets[old]
            specs = {name: (shape, self._dtype(name)) for name, shape in shapes.items()}
            arena = Arena(self._cuda, specs, mirrored=source.preparation == "host")
            bound = self._bind("lidar", arena.addresses(), arena.shapes)
            line = self._line("lidar", [bound], None, lambda stream: source.queue_lidar(arena, stream))
            bucket = _Bucket(arena=arena, line=line)
        self._buckets[key] = bucket
        return bucket

    def _line(
        self,
        name: str,
        bound: list[BoundEngine],
        after: Callable[[int], None] | None = None,
        before: Callable[[int], None] | None = None,
    ) -> Line:
        stream = self._streams[name]

        def work() -> None:
            if before:
                before(stream)
            for engine in bound:
                engine.queue(stream)
            if after:
                after(stream)

        return Line(self._cuda, stream, work, name=" and ".join(LINES[name]))

    def _bind(self, stage: str, addresses: Mapping[str, int], shapes: Mapping[str, Shape] | None = None) -> BoundEngine:
        engine = self._engines[stage]
        line = next(name for name, stages in LINES.items() if stage in stages)
        known = {**self._between.addresses(), **self._answer.addresses(), **self._images.addresses(), **addresses}
        wanted = [spec.name for spec in (*engine.record.inputs, *engine.record.outputs)]
        missing = [name for name in wanted if name not in known]
        if missing:
            raise EngineError(
                f"nothing gives stage {stage} its {', '.join(missing)}",
                expected="inputs that an earlier stage or the host makes",
                remedy="export again",
            )
        fixed = {
            spec.name: self._fixed(stage, spec.name) for spec in engine.record.inputs if spec.name not in addresses
        }
        return BoundEngine(
            engine, {**fixed, **(shapes or {})}, {name: known[name] for name in wanted}, self._scratch[line]
        )

    def _handed(self) -> dict[str, tuple[Shape, np.dtype[Any]]]:
        """Every output of a stage, each type agreed on by all that touch the tensor."""
        found = {}
        for stage, engine in self._engines.items():
            for spec in engine.record.outputs:
                types = {e.dtypes[spec.name] for e in self._engines.values() if spec.name in e.dtypes}
                if len(types) > 1:
                    raise EngineError(
                        f"{spec.name} is {' and '.join(sorted(map(str, types)))} in different stages",
                        expected="one type for what is handed from stage to stage",
                        remedy="export again; every stage of one precision hands over the same types",
                    )
                found[spec.name] = (self._fixed(stage, spec.name), types.pop())
        return found

    def _fixed(self, stage: str, tensor: str) -> Shape:
        record = self._engines[stage].record
        spec = next(s for s in (*record.inputs, *record.outputs) if s.name == tensor)
        if record.dynamic(spec):
            raise EngineError(
                f"{tensor} of stage {stage} changes its size from frame to frame",
                expected="a fixed shape: only LiDAR inputs and pooling tables change",
                remedy="correct the stage contract and export again",
            )
        return record.sizes(spec, "max")

    def _dtype(self, tensor: str) -> np.dtype[Any]:
        return next(engine.dtypes[tensor] for engine in self._engines.values() if tensor in engine.dtypes)

    def _scratch_of(self, stages: tuple[str, ...]) -> DeviceBuffer:
        """Memory for stages that never run at once; the head's line runs behind the camera's and shares it."""
        lines = [*stages, *(LINES["head"] if "camera" in stages else ())]
        return self._cuda.device_buffer(max(self._engines[stage].scratch_bytes() for stage in lines))

    def _outputs(self) -> Arrays:
        specs = {spec.name: spec for spec in self._engines[STAGES[-1]].record.outputs}
        return {name: self._answer.host(name).astype(spec.dtype, copy=True) for name, spec in specs.items()}

    def _timings(self, *, seen: bool) -> dict[str, float]:
        ms, events = self._cuda.elapsed_ms, self._events
        found = {"camera": ms(events["begun"], events["camera"])}
        if seen:
            found["lidar"] = ms(events["lidar begun"], events["lidar"])
        joined = max((events["camera"], events["lidar"]), key=lambda event: ms(events["begun"], event))
        found["head"] = ms(joined, events["head"])
        return {LINE_PARTS[line]: time for line, time in found.items()}
