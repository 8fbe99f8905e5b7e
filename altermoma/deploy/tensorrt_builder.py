"""Builds the engine of one stage with TensorRT 8.5 to 11, and reads back what was built."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import altermoma
from altermoma.deploy.manifest import StageRecord
from altermoma.deploy.tensorrt_api import (
    complaints,
    make_logger,
    member,
    network_flags,
    required,
    strongly_typed,
)
from altermoma.deploy.tensorrt_inspect import EngineLayers, read_layers, require_precision
from altermoma.deploy.tensorrt_islands import require_islands
from altermoma.deploy.tensorrt_precision import find_islands, pin_precisions, trace_network
from altermoma.errors import EngineError
from altermoma.progress import say
from altermoma.storage import content_key


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How one stage is built. Everything here is part of the engine's key.

    Attributes:
        tf32: lets fp32 layers use TF32 tensor cores; off, so that fp32 means fp32.
        workspace_mib: limit of scratch memory; 0 leaves TensorRT's own.
        optimization_level: 0-5, from 8.6; -1 leaves TensorRT's own.
        version_compatible: the plan also loads in later versions of the same major, from 8.6.
        hardware_compatible: the plan also runs on other Ampere-or-later GPUs, from 8.6.
    """

    precision: Literal["fp32", "fp16", "int8"]
    sparsity: Literal["dense", "2:4"] = "dense"
    tf32: bool = False
    workspace_mib: int = 0
    optimization_level: int = -1
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A serialised plan, what its layers compute in, and the timing cache to keep for the next build."""

    plan: bytes
    layers: EngineLayers
    timing_cache: bytes


@dataclass(kw_only=True)
class BuildLog:
    """What a build leaves behind however it ends: the messages of TensorRT, and the inspector's report (JSON)."""

    messages: list[str] = field(default_factory=list)
    report: str = ""


def engine_key(onnx_sha256: str, options: BuildOptions, *, tensorrt: str, device: str) -> str:
    """Changes with the graph, the options, the TensorRT version, the GPU and the code that builds: a stale engine is
    never reused.
    """
    return content_key(
        {
            "onnx": onnx_sha256,
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
        EngineError: the graph does not parse, does not build, or the engine does not compute in what was asked for.
    """
    log = log or BuildLog()
    messages = log.messages
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    _parse(trt, network, logger, onnx, stage)
    traced = trace_network(trt, network)
    if options.precision == "fp16" and not strongly_typed(trt):
        pin_precisions(trt, traced, stage)
    config = builder.create_builder_config()
    _configure(trt, config, options)
    _add_profile(builder, config, stage)
    cache = config.create_timing_cache(timing_cache)
    config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failed(trt, stage, messages)
    payload = bytes(memoryview(plan))
    log.report = _inspect(trt, logger, payload, messages)
    layers = read_layers(log.report, messages)
    require_precision(stage.name, options.precision, layers)
    if options.precision != "fp32":
        unseen = require_islands(stage, find_islands(traced, stage), layers)
        if unseen:
            say(f"stage {stage.name}: the engine's report does not show what touches {', '.join(unseen)}: unverified")
    return BuiltEngine(plan=payload, layers=layers, timing_cache=bytes(memoryview(cache.serialize())))


def _parse(trt: Any, network: Any, logger: Any, onnx: bytes, stage: StageRecord) -> None:
    parser = trt.OnnxParser(network, logger)
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


def _configure(trt: Any, config: Any, options: BuildOptions) -> None:
    flags = trt.BuilderFlag
    if not options.tf32:
        config.clear_flag(flags.TF32)
    if options.sparsity == "2:4":
        config.set_flag(flags.SPARSE_WEIGHTS)
    if not strongly_typed(trt):
        _permit_precision(trt, config, options)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    since_86 = "build on TensorRT 8.6 or newer, or leave the option out"
    if options.optimization_level >= 0:
        required(config, "builder_optimization_level", trt, since_86)
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(required(flags, "VERSION_COMPATIBLE", trt, since_86))
    if options.hardware_compatible:
        levels = required(trt, "HardwareCompatibilityLevel", trt, since_86)
        config.hardware_compatibility_level = levels.AMPERE_PLUS


def _permit_precision(trt: Any, config: Any, options: BuildOptions) -> None:
    """8.x: what the flags permit; `pin_precisions` gives OBEY_PRECISION_CONSTRAINTS something to enforce.

    Layers of int8 graphs stay free: next to Q/DQ pairs a precision of their own would keep them from being quantised.
    """
    flags = trt.BuilderFlag
    if options.precision in {"fp16", "int8"}:
        config.set_flag(flags.FP16)
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
    if options.precision == "int8":
        config.set_flag(flags.INT8)


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


def _inspect(trt: Any, logger: Any, plan: bytes, messages: list[str]) -> str:
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"the engine just built cannot be read back: {complaints(messages)}")
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _failed(trt: Any, stage: StageRecord, messages: list[str]) -> EngineError:
    text = complaints(messages)
    short = "memory" in text.lower()
    return EngineError(
        f"TensorRT {trt.__version__} could not build stage {stage.name}: {text}",
        expected="an engine",
        remedy="end other programs that use the GPU, or lower workspace_mib" if short else "see the message above",
    )
