"""Engines of stages, and what they are run with: execution contexts, scratch memory, fixed bindings.

The calls used here exist from TensorRT 8.5 to 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from altermoma.deploy.cuda_driver import Cuda, DeviceBuffer
from altermoma.deploy.manifest import BUILD_COMMAND, StageRecord
from altermoma.deploy.tensorrt_api import complaints, member, numpy_name, shares_profiles
from altermoma.deploy.tensorrt_load import LoadedEngine
from altermoma.errors import EngineError

Shape = tuple[int, ...]


class StageEngine:
    """One engine of a stage, without buffers.

    Attributes:
        dtypes: of its tensors, by name.
        sole: whether only one context may live at a time, as on TensorRT 8.5 where shapes change.

    Raises:
        EngineError: its tensors are not those of the contract.
    """

    def __init__(self, trt: Any, loaded: LoadedEngine, record: StageRecord, cuda: Cuda) -> None:
        self.record, self.cuda = record, cuda
        # What was loaded holds the runtime and the logger, which must outlive the engine.
        self._trt, self._loaded, self._engine = trt, loaded, loaded.engine
        self._dynamic = any(record.dynamic(spec) for spec in record.inputs)
        self.sole = self._dynamic and not shares_profiles(trt)
        held = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        wanted = {spec.name for spec in (*record.inputs, *record.outputs)}
        if held != wanted:
            raise EngineError(
                f"the engine of stage {record.name} has tensors {', '.join(sorted(held))}",
                expected=", ".join(sorted(wanted)),
                remedy=f"run {BUILD_COMMAND} again",
            )
        self.dtypes = {name: np.dtype(numpy_name(trt, self._engine.get_tensor_dtype(name))) for name in wanted}

    def complaints(self) -> str:
        """What TensorRT said last."""
        return complaints(self._loaded.messages)

    def context(self) -> Any:
        """An execution context with scratch memory of its own."""
        return self._checked(self._engine.create_execution_context())

    def scratch_bytes(self) -> int:
        """Scratch memory that a context needs; 0 where this version does not tell."""
        told = (member(self._engine, name) for name in ("device_memory_size_v2", "device_memory_size"))
        return next((int(size) for size in told if size is not None), 0)

    def context_in(self, scratch: DeviceBuffer) -> Any:
        """An execution context that works in given memory; contexts that never run at once may share it."""
        strategies = member(self._trt, "ExecutionContextAllocationStrategy")
        if strategies is not None:
            context = self._checked(self._engine.create_execution_context(strategies.USER_MANAGED))
        else:
            context = self._checked(self._engine.create_execution_context_without_device_memory())
        if member(context, "set_device_memory") is not None:
            context.set_device_memory(scratch.address, scratch.size)
        else:
            context.device_memory = scratch.address
        return context

    def _checked(self, context: Any) -> Any:
        if context is None:
            raise EngineError(f"stage {self.record.name} gets no execution context: {self.complaints()}")
        # Engines hold every layer's details for the inspector; telling profilers of them makes each run longer.
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        # Before 10 only an engine's first context comes with the profile.
        if self._dynamic and context.active_optimization_profile != 0:
            if not context.set_optimization_profile_async(0, self.cuda.stream):
                raise EngineError(f"stage {self.record.name} gets no optimisation profile: {self.complaints()}")
            self.cuda.synchronise(self.cuda.stream)
        return context


class BoundEngine:
    """An execution context whose shapes and addresses never change: what a CUDA graph may hold.

    Args:
        shapes: of all inputs, within the engine's profile.
        addresses: of all inputs and outputs.
        scratch: at least `scratch_bytes`.

    Raises:
        EngineError: the engine refuses a shape or an address.
    """

    def __init__(
        self, engine: StageEngine, shapes: Mapping[str, Shape], addresses: Mapping[str, int], scratch: DeviceBuffer
    ) -> None:
        self._engine, self._context = engine, engine.context_in(scratch)
        name = engine.record.name
        for tensor, shape in shapes.items():
            if not self._context.set_input_shape(tensor, shape):
                raise EngineError(
                    f"stage {name}: the engine refuses {tensor} of shape {list(shape)}: {engine.complaints()}",
                    expected="a shape within its optimisation profile",
                    remedy="raise the axis in the stage contract, export again and rebuild the engines",
                )
        for tensor, address in addresses.items():
            if not self._context.set_tensor_address(tensor, address):
                raise EngineError(f"stage {name}: no address for {tensor}: {engine.complaints()}")

    def queue(self, stream: int) -> None:
        """Queues one run."""
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"stage {self._engine.record.name} did not run: {self._engine.complaints()}")
