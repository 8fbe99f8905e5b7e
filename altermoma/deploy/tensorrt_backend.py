"""Stages on TensorRT engines: numpy in, numpy out, buffers allocated once at their largest size.

How engines are built: altermoma.deploy.tensorrt_engines.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Cuda, DeviceBuffer
from altermoma.deploy.manifest import BUILD_COMMAND, StageRecord
from altermoma.deploy.stage_io import Arrays, check_inputs
from altermoma.deploy.tensorrt_api import complaints, import_tensorrt, member, numpy_name
from altermoma.deploy.tensorrt_engines import require_gpu
from altermoma.deploy.tensorrt_load import LoadedEngine, load_engine, require_fitting
from altermoma.errors import EngineError


def open_engines(bundle: Bundle, precision: str, only: Collection[str] | None = None) -> dict[str, TensorRtStage]:
    """Loads the engines of every stage, or of some, that were built for this very GPU and TensorRT version.

    Raises:
        EngineError: no GPU, no engine, or one of another device or version; says which.
        UnsupportedError: tensorrt is not installed.
    """
    gpu, trt = require_gpu(), import_tensorrt()
    wanted = {name: record for name, record in bundle.stages(precision).items() if only is None or name in only}
    found = {r.stage: r for r in bundle.manifest.engines.built if r.precision == precision}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise EngineError(
            f"bundle {bundle.folder} holds no {precision} engine of stage {', '.join(missing)}",
            expected="engines built on this machine",
            remedy=f"run {BUILD_COMMAND}",
        )
    for record in (found[name] for name in wanted):
        require_fitting(record, trt, gpu)
    cuda = Cuda()
    return {name: TensorRtStage(trt, load_engine(trt, bundle, found[name]), wanted[name], cuda) for name in wanted}


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """Where one tensor lives."""

    dtype: np.dtype[Any]
    device: DeviceBuffer
    host: NDArray[np.uint8]


class TensorRtStage:
    """One engine with its buffers. The calls used here exist from 8.5 to 11.

    Raises:
        EngineError: its tensors are not those of the contract.
    """

    def __init__(self, trt: Any, loaded: LoadedEngine, record: StageRecord, cuda: Cuda) -> None:
        self.record, self._cuda, self._loaded = record, cuda, loaded
        self._engine, self._messages = loaded.engine, loaded.messages
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"stage {record.name} gets no execution context: {complaints(self._messages)}")
        self._slots = self._allocate(trt)

    def run(self, inputs: Arrays) -> Arrays:
        self._feed(inputs)
        self._execute()
        shapes = {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in self.record.outputs}
        for name, shape in shapes.items():
            slot = self._slots[name]
            self._cuda.download(slot.host, slot.device, _bytes(shape, slot.dtype))
        self._cuda.synchronise()
        return {name: self._read(name, shape) for name, shape in shapes.items()}

    def execution_ms(self, inputs: Arrays, runs: int) -> NDArray[np.float64]:
        """Milliseconds of the engine alone, inputs on the device and outputs left there: a run without its copies."""
        self._feed(inputs)
        found = np.empty(runs)
        for i in range(runs):
            self._cuda.synchronise()
            started = time.perf_counter()
            self._execute()
            self._cuda.synchronise()
            found[i] = (time.perf_counter() - started) * 1e3
        return found

    def memory_bytes(self) -> dict[str, int]:
        """Device memory: scratch of the execution context (0 where not told), and buffers of inputs and outputs."""
        told = [member(self._engine, name) for name in ("device_memory_size_v2", "device_memory_size")]
        buffers = sum(slot.device.size for slot in self._slots.values())
        return {"scratch": next((int(size) for size in told if size is not None), 0), "buffers": buffers}

    def _feed(self, inputs: Arrays) -> None:
        for name, array in check_inputs(self.record, inputs, bounded=True).items():
            self._upload(name, array)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError(f"stage {self.record.name} did not run: {complaints(self._messages)}")

    def _upload(self, name: str, array: NDArray[Any]) -> None:
        slot = self._slots[name]
        raw = array.astype(slot.dtype, copy=False).reshape(-1).view(np.uint8)
        slot.host[: raw.size] = raw
        self._cuda.upload(slot.device, slot.host, raw.size)
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

    def _allocate(self, trt: Any) -> dict[str, _Slot]:
        engine = self._engine
        held = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        specs = {spec.name: spec for spec in (*self.record.inputs, *self.record.outputs)}
        if held != set(specs):
            raise EngineError(
                f"the engine of stage {self.record.name} has tensors {', '.join(sorted(held))}",
                expected=", ".join(sorted(specs)),
                remedy=f"run {BUILD_COMMAND} again",
            )
        slots = {}
        for name, spec in specs.items():
            dtype = np.dtype(numpy_name(trt, engine.get_tensor_dtype(name)))
            size = _bytes(self.record.sizes(spec, "max"), dtype)
            slots[name] = _Slot(dtype=dtype, device=self._cuda.device_buffer(size), host=self._cuda.pinned(size))
            if not self._context.set_tensor_address(name, slots[name].device.address):
                raise EngineError(f"stage {self.record.name}: no address for {name}: {complaints(self._messages)}")
        return slots


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
