"""Builds the engine of one stage with TensorRT 8.5 to 11, and reads back what was built."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altermoma
from altermoma.deploy.manifest import StageRecord
from altermoma.deploy.tensorrt_api import Messages, complaints, make_logger, member, network_flags, strongly_typed
from altermoma.deploy.tensorrt_config import BuildOptions, configure, parser_flags, relax_precision
from altermoma.deploy.tensorrt_dla import place_on_dla
from altermoma.deploy.tensorrt_inspect import EngineLayers, read_layers, require_precision
from altermoma.deploy.tensorrt_islands import require_islands
from altermoma.deploy.tensorrt_load import make_runtime
from altermoma.deploy.tensorrt_precision import (
    TracedLayer,
    find_islands,
    held_precision,
    pin_precisions,
    trace_network,
)
from altermoma.deploy.tensorrt_progress import shown_progress
from altermoma.errors import EngineError
from altermoma.progress import say
from altermoma.storage import content_key

__all__ = ["BuildLog", "BuildOptions", "BuiltEngine", "build_engine", "builder_revision", "engine_key"]


_NO_KERNEL = "Could not find any implementation"
"""What a builder says of a layer that it has no kernel for, in the precision ordered or at all."""


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A serialised plan, what its layers compute in, and the timing cache to keep for the next build.

    `dla_lacks` counts layers of a stage on an accelerator that run on the GPU.
    """

    plan: bytes
    layers: EngineLayers
    timing_cache: bytes
    dla_lacks: int = 0


@dataclass(kw_only=True)
class BuildLog:
    """What a build leaves behind however it ends: the messages of TensorRT, and the inspector's report (JSON).

    `faults` collects why an engine is not what was asked for, where it is a list: who measures engines wants to see
    what a wrong one does. Otherwise such an engine is an error.
    """

    messages: Messages = field(default_factory=Messages)
    report: str = ""
    faults: list[str] | None = None

    @contextlib.contextmanager
    def verifying(self) -> Iterator[None]:
        """What is found wrong within is an error, or one of the faults."""
        try:
            yield
        except EngineError as error:
            if self.faults is None:
                raise
            self.faults.append(str(error))


def engine_key(onnx_sha256: str, stage: StageRecord, options: BuildOptions, *, tensorrt: str, device: str) -> str:
    """Changes with the graph, the contract (the profile's sizes), the options, the TensorRT version, the GPU and the
    code that builds: a stale engine is never reused.
    """
    return content_key(
        {
            "onnx": onnx_sha256,
            # What was measured of a graph does not change its engine.
            "contract": {k: v for k, v in dataclasses.asdict(stage).items() if k not in {"noise", "rounding"}},
            "options": dataclasses.asdict(options),
            "tensorrt": tensorrt,
            "device": device,
            "builder": builder_revision(),
        }
    )


@functools.cache
def builder_revision() -> str:
    """Version of the package, and a digest of the modules that decide how engines are built and verified."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("tensorrt_*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return f"{altermoma.__version__}+{digest.hexdigest()[:12]}"


def build_engine(
    trt: Any,
    onnx: bytes,
    stage: StageRecord,
    options: BuildOptions,
    *,
    timing_cache: bytes = b"",
    log: BuildLog | None = None,
) -> BuiltEngine:
    """Builds and verifies one stage. Call only where `probe_gpu` found a GPU: TensorRT crashes elsewhere.

    Args:
        trt: the tensorrt module.
        onnx: serialised graph; its precision is written into it.
        stage: contract, for the optimisation profile.
        options: how to build.
        timing_cache: of an earlier build on this device and version.
        log: receives what TensorRT says, also where this raises.

    Raises:
        EngineError: the graph does not parse, does not build, or the engine does not compute in what was asked for
            (unless the log collects that).
    """
    log = log or BuildLog()
    messages = log.messages
    logger = make_logger(trt, messages)
    builder = _builder(trt, logger, messages)
    network = builder.create_network(network_flags(trt))
    _parse(trt, network, logger, onnx, stage, options)
    traced = trace_network(trt, network)
    if options.precision != "fp32" and not strongly_typed(trt):
        pin_precisions(trt, traced, stage)
    config = builder.create_builder_config()
    configure(trt, config, options)
    dla_lacks = place_on_dla(trt, builder, network, config, stage, options)
    _add_profile(builder, config, stage)
    cache = _timing_cache(config, timing_cache, stage)
    with shown_progress(trt, config, stage.name):
        payload = _measurable_plan(trt, builder, network, config, stage, log)
    log.report = _inspect(trt, logger, payload, options, stage, messages)
    layers = EngineLayers(layers=())
    with log.verifying():
        layers = read_layers(log.report, messages)
        _verify(stage, options, traced, layers)
    if log.faults is not None and _dense_by_choice(options, layers):
        log.faults.append("2:4 was asked for; TensorRT found layers eligible and picked none")
    return BuiltEngine(
        plan=payload, layers=layers, timing_cache=bytes(memoryview(cache.serialize())), dla_lacks=dla_lacks
    )


def _verify(stage: StageRecord, options: BuildOptions, traced: Sequence[TracedLayer], layers: EngineLayers) -> None:
    """Holds what was built against what was asked for.

    Raises:
        EngineError: another precision, or an fp32 island that is rounded.
    """
    held = options.precision if stage.numbers else held_precision(traced, options.precision)
    require_precision(stage.name, held, layers, stage.numbers)
    if options.precision == "fp32":
        return
    unseen = require_islands(stage, find_islands(traced, stage), layers)
    if unseen:
        say(f"stage {stage.name}: the engine's report does not show what touches {', '.join(unseen)}: unverified")


def _dense_by_choice(options: BuildOptions, layers: EngineLayers) -> bool:
    """Whether dense kernels were faster for every layer of a 2:4 stage: for single stages only a measurement's fault,
    else `engine_report.require_sparse` goes by all of them.
    """
    return options.sparsity == "2:4" and bool(layers.sparse_eligible) and not layers.sparse_picked


def _builder(trt: Any, logger: Any, messages: list[str]) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:
        # "factory function returned nullptr" is all that the bindings say.
        raise EngineError(
            f"TensorRT {trt.__version__} does not start: {complaints(messages)} ({error})",
            expected="a GPU and a driver that this TensorRT can use",
            remedy="compare its CUDA version with the driver's: nvidia-smi",
        ) from error


def _plan(trt: Any, builder: Any, network: Any, config: Any, stage: StageRecord, messages: list[str]) -> bytes:
    try:
        plan = builder.build_serialized_network(network, config)
    except (MemoryError, RuntimeError) as error:
        messages.append(f"ERROR: {error!r}")
        raise _failed(trt, stage, messages) from error
    if plan is None:
        raise _failed(trt, stage, messages)
    return bytes(memoryview(plan))


def _measurable_plan(trt: Any, builder: Any, network: Any, config: Any, stage: StageRecord, log: BuildLog) -> bytes:
    """A plan; where 8.x has no kernel of a precision ordered and the log collects faults, one of its own precisions.

    Raises:
        EngineError: as `_plan`.
    """
    try:
        return _plan(trt, builder, network, config, stage, log.messages)
    except EngineError as error:
        lacking = any(_NO_KERNEL in message for message in log.messages)
        if log.faults is None or not lacking or not relax_precision(trt, config):
            raise
        log.faults.append(f"{error.found}; it was built with precisions that TensorRT chose where it had no kernel")
        return _plan(trt, builder, network, config, stage, log.messages)


def _parse(trt: Any, network: Any, logger: Any, onnx: bytes, stage: StageRecord, options: BuildOptions) -> None:
    parser = trt.OnnxParser(network, logger)
    for flag in parser_flags(trt, options):
        parser.set_flag(flag)
    if parser.parse(onnx):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    faults = [f"node {_node(error)}: {error.desc()}" for error in errors]
    raise EngineError(
        f"TensorRT {trt.__version__} cannot read stage {stage.name}:\n  " + "\n  ".join(faults),
        expected="a graph of operators that this version supports",
        remedy="export with --target naming this machine, which checks the graph for its TensorRT version",
    )


def _node(error: Any) -> str:
    """The node's name where the parser tells it (10 and later), else its number."""
    name = member(error, "node_name")
    return str(name() if name is not None else error.node())


def _add_profile(builder: Any, config: Any, stage: StageRecord) -> None:
    dynamic = [spec for spec in stage.inputs if stage.dynamic(spec)]
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for spec in dynamic:
        profile.set_shape(spec.name, stage.sizes(spec, "min"), stage.sizes(spec, "opt"), stage.sizes(spec, "max"))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"stage {stage.name}: TensorRT refuses the optimisation profile",
            expected="min <= opt <= max that fit the graph",
            remedy="correct the axes in the stage contract and export again",
        )


def _timing_cache(config: Any, earlier: bytes, stage: StageRecord) -> Any:
    """That of an earlier build, unless it cannot be read: it saves time and decides nothing."""
    cache = config.create_timing_cache(earlier)
    if cache is None or not config.set_timing_cache(cache, False):
        say(f"stage {stage.name}: the timing cache of earlier builds is not for this machine; a new one is begun")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _inspect(trt: Any, logger: Any, plan: bytes, options: BuildOptions, stage: StageRecord, messages: list[str]) -> str:
    core = options.builder.dla_core if options.on_dla(stage.name) else -1
    runtime = make_runtime(trt, logger, host_code=options.builder.version_compatible, dla_core=core)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"the engine just built cannot be read back: {complaints(messages)}")
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _failed(trt: Any, stage: StageRecord, messages: list[str]) -> EngineError:
    text = complaints(messages)
    short = "memory" in text.lower() or "MemoryError" in text
    return EngineError(
        f"TensorRT {trt.__version__} could not build stage {stage.name}: {text}",
        expected="an engine",
        remedy="end other programs that use the GPU, or lower builder.workspace_mib"
        if short
        else "see the message above",
    )
