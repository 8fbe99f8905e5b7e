"""Stages on TensorRT engines: numpy in, numpy out, buffers allocated once at their largest size."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.bundle import ENGINES_FOLDER, Bundle
from altermoma.deploy.cuda_driver import Cuda, DeviceBuffer, Gpu, probe_gpu
from altermoma.deploy.manifest import BUILD_COMMAND, NOT_BUILT, EngineRecord, EngineState, StageRecord
from altermoma.deploy.stage_io import Arrays, check_inputs
from altermoma.deploy.tensorrt_api import complaints, import_tensorrt, make_logger, member, numpy_name
from altermoma.deploy.tensorrt_builder import BuildLog, BuildOptions, build_engine, engine_key
from altermoma.errors import EngineError, UnsupportedError
from altermoma.progress import say, track
from altermoma.storage import sha256_of, write_bytes


def engines_here(bundle: Bundle, options: BuildOptions, *, build: Literal["auto", "require", "never"]) -> Bundle:
    """Builds the engines of one precision where this machine can, and records the outcome in the bundle.

    Args:
        bundle: gains `engines/` and a manifest that lists them, or says why there are none.
        options: how to build.
        build: "require" makes a machine that cannot build an error, "never" does not try.

    Returns:
        The bundle as it now is.

    Raises:
        EngineError: a stage that does not build or is not what was asked for; or nothing to build with, if required.
    """
    reason = "" if build != "never" else "the build was not asked for"
    reason = reason or why_not()
    if reason and build == "require":
        raise EngineError(
            f"engines cannot be built here: {reason}",
            expected="an NVIDIA GPU and TensorRT 8.5 or newer",
            remedy=f"run on the target: {BUILD_COMMAND}",
        )
    if reason:
        return bundle.with_engines(_unfinished(reason, bundle.manifest.engines.built))
    return _build_all(bundle, options)


def why_not() -> str:
    """Why this machine cannot build or run engines; empty if it can. Never crashes."""
    probe = probe_gpu()
    if probe.gpu is None:
        return probe.reason
    try:
        import_tensorrt()
    except UnsupportedError as error:
        return error.found
    return ""


def _unfinished(reason: str, built: Sequence[EngineRecord]) -> EngineState:
    return EngineState(state=NOT_BUILT, reason=reason, command=BUILD_COMMAND, built=tuple(built))


def _build_all(bundle: Bundle, options: BuildOptions) -> Bundle:
    """Records every stage as it is done, so that a killed build goes on where it was."""
    records = bundle.stages(options.precision)
    for stage in track(records.values(), f"engines {options.precision}", total=len(records)):
        bundle = build_stage(bundle, stage, options)
    _remove_stale(bundle)
    return bundle.with_engines(EngineState(state="built", built=bundle.manifest.engines.built))


def _remove_stale(bundle: Bundle) -> None:
    """Deletes plans that the manifest does not list: of older graphs, options, versions or killed builds."""
    listed = {bundle.folder / record.file for record in bundle.manifest.engines.built}
    for path in (bundle.folder / ENGINES_FOLDER).glob("*.plan"):
        if path not in listed:
            path.unlink()


def build_stage(
    bundle: Bundle,
    stage: StageRecord,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    log: BuildLog | None = None,
) -> Bundle:
    """Builds one stage and records it; an engine of the same key is kept. Only where `why_not` says nothing.

    Args:
        bundle: gains the plan; it counts as unfinished until `engines_here` is through.
        stage: one of the bundle's.
        options: how to build.
        timing_cache: file to read and add to; without it one below the bundle's `engines/`.
        log: receives what TensorRT says.

    Returns:
        The bundle as it now is.

    Raises:
        EngineError: the stage does not build, or is not what was asked for.
    """
    trt, gpu = import_tensorrt(), _gpu()
    version, device = str(trt.__version__), device_name(gpu)
    key = engine_key(bundle.manifest.files[stage.file].sha256, options, tensorrt=version, device=device)
    if any(record.key == key for record in bundle.manifest.engines.built):
        return bundle
    say(f"building {options.precision} engine of stage {stage.name}")
    file = f"{ENGINES_FOLDER}/{stage.name}-{options.precision}-{key}.plan"
    cache = timing_cache or bundle.folder / ENGINES_FOLDER / f"timing-{version}-{gpu.compute_capability}.cache"
    old = cache.read_bytes() if cache.is_file() else b""
    built = build_engine(trt, bundle.graph(stage), stage, options, timing_cache=old, log=log)
    write_bytes(bundle.folder / file, built.plan)
    if built.timing_cache:
        write_bytes(cache, built.timing_cache)
    record = EngineRecord(
        stage=stage.name,
        precision=options.precision,
        file=file,
        sha256=sha256_of(bundle.folder / file),
        size=len(built.plan),
        key=key,
        tensorrt=version,
        device=device,
        precisions=built.layers.counts,
    )
    others = [r for r in bundle.manifest.engines.built if (r.stage, r.precision) != (stage.name, options.precision)]
    return bundle.with_engines(_unfinished("the build was not finished", [*others, record]))


def device_name(gpu: Gpu) -> str:
    """Plans belong to this."""
    return f"{gpu.name} (compute capability {gpu.compute_capability})"


def device_here() -> str:
    """`device_name` of this machine.

    Raises:
        EngineError: no GPU.
    """
    return device_name(_gpu())


def _gpu() -> Gpu:
    probe = probe_gpu()
    if probe.gpu is None:
        raise EngineError(probe.reason, expected="an NVIDIA GPU", remedy="use the onnxruntime backend here")
    return probe.gpu


def open_engines(bundle: Bundle, precision: str, only: Collection[str] | None = None) -> dict[str, TensorRtStage]:
    """Loads the engines of every stage, or of some, that were built for this very GPU and TensorRT version.

    Raises:
        EngineError: no GPU, no engine, or one of another device or version; says which.
        UnsupportedError: tensorrt is not installed.
    """
    device, trt = device_name(_gpu()), import_tensorrt()
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
        if (record.tensorrt, record.device) != (str(trt.__version__), device):
            raise EngineError(
                f"the {precision} engine of stage {record.stage} is for TensorRT {record.tensorrt} on {record.device}",
                expected=f"TensorRT {trt.__version__} on {device}",
                remedy=f"run {BUILD_COMMAND} on this machine",
            )
    cuda = Cuda()
    return {name: TensorRtStage(trt, bundle.engine(found[name]), wanted[name], cuda) for name in wanted}


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """Where one tensor lives."""

    dtype: np.dtype[Any]
    device: DeviceBuffer
    host: NDArray[np.uint8]


class TensorRtStage:
    """One engine with its buffers. The calls used here exist from 8.5 to 11.

    Raises:
        EngineError: the plan does not load, or its tensors are not those of the contract.
    """

    def __init__(self, trt: Any, plan: bytes, record: StageRecord, cuda: Cuda) -> None:
        self.record, self._cuda = record, cuda
        self._messages: list[str] = []
        # The logger and the runtime must outlive the engine.
        self._logger = make_logger(trt, self._messages)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"the engine of stage {record.name} does not load: {complaints(self._messages)}",
                expected=f"a plan of TensorRT {trt.__version__} for {cuda.gpu.name}",
                remedy=f"run {BUILD_COMMAND} on this machine",
            )
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
