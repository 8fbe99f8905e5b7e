"""From a plan to an engine: what may be loaded here, and the weights of plans that were stripped of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Gpu
from altermoma.deploy.manifest import BUILD_COMMAND, EngineRecord
from altermoma.deploy.tensorrt_api import Messages, complaints, make_logger, required, version_of
from altermoma.errors import EngineError

_CAPABILITY = re.compile(r"\(compute capability (\d+)\.(\d+)\)$")
_AMPERE = (8, 0)


def device_name(gpu: Gpu) -> str:
    """Plans belong to this."""
    return f"{gpu.name} (compute capability {gpu.compute_capability})"


def require_fitting(record: EngineRecord, trt: Any, gpu: Gpu) -> None:
    """A plan is for one TensorRT version and one GPU, unless it was built to be compatible with others.

    Raises:
        EngineError: the plan is not for this machine; says what it is for.
    """
    if _version_fits(record, trt) and _device_fits(record, gpu):
        return
    built = f"TensorRT {record.tensorrt} on {record.device}"
    kinds = [f"hardware compatible ({record.hardware_compatible})"] * (record.hardware_compatible != "none")
    kinds += ["version compatible"] * record.version_compatible
    raise EngineError(
        f"the {record.precision} engine of stage {record.stage} is for {built}"
        + (f", {', '.join(kinds)}" if kinds else ""),
        expected=f"TensorRT {trt.__version__} on {device_name(gpu)}",
        remedy=f"run {BUILD_COMMAND} on this machine",
    )


def _version_fits(record: EngineRecord, trt: Any) -> bool:
    here, there = str(trt.__version__), record.tensorrt
    if here == there or not record.version_compatible:
        return here == there
    major, minor = (int(part) for part in there.split(".")[:2])
    return version_of(trt)[0] == major and version_of(trt) >= (major, minor)


def _device_fits(record: EngineRecord, gpu: Gpu) -> bool:
    if record.device == device_name(gpu):
        return True
    built, here = _capability(record.device), _capability(device_name(gpu))
    if built is None or here is None:
        return False
    if record.hardware_compatible == "ampere_plus":
        return min(built, here) >= _AMPERE
    return record.hardware_compatible == "same_compute_capability" and built == here


def _capability(device: str) -> tuple[int, int] | None:
    found = _CAPABILITY.search(device)
    return (int(found[1]), int(found[2])) if found else None


def make_runtime(trt: Any, logger: Any, *, host_code: bool = False, dla_core: int = -1) -> Any:
    """A runtime for a plan; both must outlive the engine. Only where there is a GPU: TensorRT crashes elsewhere.

    Args:
        trt: the tensorrt module.
        logger: of this process.
        host_code: version-compatible plans carry a runtime of their own, which is code; the manifest vouches for the
            plan by its hash.
        dla_core: that the plan was built for; -1 for none.
    """
    runtime = trt.Runtime(logger)
    if host_code:
        required(runtime, "engine_host_code_allowed", trt, "load it with TensorRT 8.6 or newer")
        runtime.engine_host_code_allowed = True
    if dla_core >= 0:
        runtime.DLA_core = dla_core
    return runtime


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """An engine and what must outlive it; `messages` is what TensorRT says from now on."""

    engine: Any
    runtime: Any
    logger: Any
    messages: Messages


def load_engine(trt: Any, bundle: Bundle, record: EngineRecord) -> LoadedEngine:
    """Loads an engine of a bundle; one that was stripped gets the weights of its graph.

    Raises:
        BundleError: the plan or the graph was altered.
        EngineError: the plan does not load here, or its weights do not fit.
    """
    graph = bundle.graph(bundle.stages(record.precision)[record.stage]) if record.stripped else b""
    return load_plan(trt, bundle.engine(record), record, graph)


def load_plan(trt: Any, plan: bytes, record: EngineRecord, graph: bytes) -> LoadedEngine:
    """Loads a plan; `graph` has the weights where the plan was stripped of them.

    Raises:
        EngineError: the plan does not load here, or its weights do not fit.
    """
    messages = Messages()
    logger = make_logger(trt, messages)
    runtime = make_runtime(trt, logger, host_code=record.version_compatible, dla_core=record.dla_core)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"the engine of stage {record.stage} does not load: {complaints(messages)}",
            expected=f"a plan of TensorRT {record.tensorrt} for {record.device}",
            remedy=f"run {BUILD_COMMAND} on this machine",
        )
    if record.stripped:
        refit_engine(trt, engine, graph, logger, messages)
    return LoadedEngine(engine=engine, runtime=runtime, logger=logger, messages=messages)


def refit_engine(trt: Any, engine: Any, onnx: bytes, logger: Any, messages: list[str]) -> None:
    """Gives a stripped engine the weights of its graph.

    Args:
        trt: the tensorrt module, 10 or newer.
        engine: deserialised, without weights.
        onnx: the graph that it was built from.
        logger: as for the runtime.
        messages: where that logger writes.

    Raises:
        EngineError: the weights do not fit, or some are missing.
    """
    since = "load it with TensorRT 10 or newer"
    refitter = trt.Refitter(engine, logger)
    parser = required(trt, "OnnxParserRefitter", trt, since)(refitter, logger)
    read = parser.refit_from_bytes(onnx)
    missing = list(refitter.get_missing_weights() or ())
    if read and not missing and refitter.refit_cuda_engine():
        return
    found = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    why = "; ".join(found) or (f"no weights for {', '.join(missing[:5])}" if missing else complaints(messages))
    raise EngineError(
        f"an engine without weights cannot be given those of its graph: {why}",
        expected="the graph that it was built from",
        remedy=f"run {BUILD_COMMAND} on this machine",
    )
