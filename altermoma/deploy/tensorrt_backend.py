"""Engines of a bundle, loaded; and run one by one, numpy in and numpy out.

How engines are built: altermoma.deploy.tensorrt_engines.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Cuda, DeviceBuffer, GpuLostError, Graph
from altermoma.deploy.engines import StageEngine
from altermoma.deploy.manifest import BUILD_COMMAND
from altermoma.deploy.stage_io import Arrays, check_inputs
from altermoma.deploy.tensorrt_api import import_tensorrt
from altermoma.deploy.tensorrt_engines import require_gpu
from altermoma.deploy.tensorrt_load import load_engine, require_fitting
from altermoma.errors import EngineError
from altermoma.progress import say


def make_cuda() -> Cuda:
    """The GPU of this machine, with streams of its own.

    Raises:
        EngineError: no GPU.
    """
    return Cuda()


def load_engines(bundle: Bundle, precision: str, only: Collection[str] | None = None) -> dict[str, StageEngine]:
    """Loads the engines of every stage, or of some, that were built for this very GPU and TensorRT version.

    Raises:
        EngineError: no GPU, no engine, one of another device or version, or not what was asked for; says which.
        UnsupportedError: tensorrt is not installed.
    """
    gpu, trt = require_gpu(), import_tensorrt()
    wanted = {name: record for name, record in bundle.stages(precision).items() if only is None or name in only}
    found = {r.stage: r for r in bundle.manifest.engines.built if r.precision == precision}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise EngineError(
            f"bundle {bundle.folder} holds no {precision} engine of stage {', '.join(missing)}"
            + (f"; {bundle.manifest.engines.reason}" if bundle.manifest.engines.reason else ""),
            expected="engines built on this machine",
            remedy=f"run {BUILD_COMMAND}",
        )
    for record in (found[name] for name in wanted):
        require_fitting(record, trt, gpu)
        if record.fault:
            raise EngineError(
                f"the {precision} engine of stage {record.stage} is not what was asked for: {record.fault}",
                expected="an engine that was verified",
                remedy=f"run {BUILD_COMMAND}",
            )
    cuda = make_cuda()
    return {name: StageEngine(trt, load_engine(trt, bundle, found[name]), wanted[name], cuda) for name in wanted}


def open_engines(bundle: Bundle, precision: str, only: Collection[str] | None = None) -> dict[str, TensorRtStage]:
    """Engines to be run one by one, each with buffers of its own; arguments and errors as in `load_engines`."""
    return {name: TensorRtStage(engine) for name, engine in load_engines(bundle, precision, only).items()}


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """Where one tensor lives."""

    dtype: np.dtype[Any]
    device: DeviceBuffer
    host: NDArray[np.uint8]


class TensorRtStage:
    """One engine with its buffers, numpy in and numpy out.

    Attributes:
        uncaptured: why `execution_ms` last timed launches from the host in place of a captured graph; else empty.
    """

    def __init__(self, engine: StageEngine) -> None:
        self.uncaptured = ""
        self._marks: list[int] = []
        self.record, self._engine, self._cuda = engine.record, engine, engine.cuda
        self._context = engine.context()
        self._slots = self._allocate()

    def run(self, inputs: Arrays) -> Arrays:
        self._cuda.enter()
        self._feed(inputs)
        self._execute()
        shapes = {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in self.record.outputs}
        for name, shape in shapes.items():
            slot = self._slots[name]
            self._cuda.download(slot.host, slot.device.address, _bytes(shape, slot.dtype))
        self._cuda.synchronise()
        return {name: self._read(name, shape) for name, shape in shapes.items()}

    def execution_ms(self, inputs: Arrays, runs: int) -> NDArray[np.float64]:
        """Milliseconds of the engine alone, inputs on the device and outputs left there: a run without its copies.

        As the pipeline runs it: device time of a captured graph, replayed without a pause, so that what the host takes
        to launch layers is not in it. Where the engine cannot be captured, each run from its call on the host to the
        end of its work; `uncaptured` then says why.
        """
        self._cuda.enter()
        self._feed(inputs)
        # Brings the context up to date with its shapes, without which it cannot be captured.
        self._execute()
        graph = self._captured()
        return self._launched_ms(runs) if graph is None else self._replayed_ms(graph, runs)

    def _captured(self) -> Graph | None:
        self.uncaptured = ""
        try:
            return self._cuda.capture(self._cuda.stream, self._execute)
        except GpuLostError:
            raise
        except EngineError as error:
            self.uncaptured = error.found
            say(f"stage {self.record.name} is timed with its launches, without a CUDA graph: {error.found}")
            return None

    def _replayed_ms(self, graph: Graph, runs: int) -> NDArray[np.float64]:
        cuda, stream = self._cuda, self._cuda.stream
        self._marks += [cuda.new_event() for _ in range(runs + 1 - len(self._marks))]
        # While the first one runs, which does not count, the host gets ahead of the device.
        cuda.replay(graph, stream)
        cuda.record(self._marks[0], stream)
        for mark in self._marks[1 : runs + 1]:
            cuda.replay(graph, stream)
            cuda.record(mark, stream)
        cuda.synchronise(stream)
        return np.array([cuda.elapsed_ms(*pair) for pair in itertools.pairwise(self._marks[: runs + 1])])

    def _launched_ms(self, runs: int) -> NDArray[np.float64]:
        found = np.empty(runs)
        self._execute()
        for i in range(runs):
            self._cuda.synchronise()
            started = time.perf_counter()
            self._execute()
            self._cuda.synchronise()
            found[i] = (time.perf_counter() - started) * 1e3
        return found

    def memory_bytes(self) -> dict[str, int]:
        """Device memory: scratch of the execution context (0 where not told), and buffers of inputs and outputs."""
        buffers = sum(slot.device.size for slot in self._slots.values())
        return {"scratch": self._engine.scratch_bytes(), "buffers": buffers}

    def _feed(self, inputs: Arrays) -> None:
        for name, array in check_inputs(self.record, inputs, bounded=True).items():
            self._upload(name, array)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError(f"stage {self.record.name} did not run: {self._engine.complaints()}")

    def _upload(self, name: str, array: NDArray[Any]) -> None:
        slot = self._slots[name]
        raw = array.astype(slot.dtype, copy=False).reshape(-1).view(np.uint8)
        slot.host[: raw.size] = raw
        self._cuda.upload(slot.device.address, slot.host, raw.size)
        if not self._context.set_input_shape(name, array.shape):
            raise EngineError(
                f"stage {self.record.name}: the engine refuses {name} of shape {list(array.shape)}",
                expected="a shape within its optimisation profile",
                remedy="raise the axis in the stage contract, export again and rebuild the engines",
            )

    def _read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        slot = self._slots[name]
        values = slot.host[: _bytes(shape, slot.dtype)].view(slot.dtype).reshape(shape)
        wanted = next(spec.dtype for spec in self.record.outputs if spec.name == name)
        return values.astype(wanted, copy=True)

    def _allocate(self) -> dict[str, _Slot]:
        slots = {}
        for spec in (*self.record.inputs, *self.record.outputs):
            dtype = self._engine.dtypes[spec.name]
            size = _bytes(self.record.sizes(spec, "max"), dtype)
            slot = _Slot(dtype=dtype, device=self._cuda.device_buffer(size), host=self._cuda.pinned(size))
            if not self._context.set_tensor_address(spec.name, slot.device.address):
                raise EngineError(f"stage {self.record.name}: no address for {spec.name}: {self._engine.complaints()}")
            slots[spec.name] = slot
        return slots


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
