"""`altermoma debug-precision` on a bundle: its own graphs, its own reference frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import EngineRecord, StageRecord
from altermoma.deploy.pipeline import Backend
from altermoma.deploy.self_check import reference_inputs
from altermoma.deploy.stage_io import Arrays
from altermoma.deploy.tensorrt_config import options_of
from altermoma.errors import RecipeError, UnsupportedError
from altermoma.export.debug_precision import Diagnosis, diagnose
from altermoma.export.debug_tensorrt import diagnose_engine


def debug_precision(
    folder: Path,
    stage: str,
    engine: str,
    *,
    backend: Backend = "onnxruntime",
    tolerance: float | None = None,
    against: Path | None = None,
) -> Diagnosis:
    """Holds one stage of a bundle, layer by layer, against its fp32 graph.

    Args:
        folder: of the bundle.
        stage: to look into.
        engine: precision to look at.
        backend: "onnxruntime" runs the graph with the roundings of half precision written out, "tensorrt" engines.
        tolerance: largest allowed difference; the bundle's for this precision if None.
        against: bundle whose fp32 graph is the yardstick; without it the bundle itself.

    Raises:
        BundleError: the bundle is damaged or lacks the precision.
        RecipeError: no such stage, or nothing to compare.
        EngineError, UnsupportedError: no GPU with TensorRT for the backend "tensorrt".
    """
    bundle = Bundle.open(folder)
    yardstick = Bundle.open(against) if against is not None else bundle
    found, wanted = bundle.stages(engine), yardstick.stages("fp32")
    if stage not in found:
        raise RecipeError(f"no stage {stage!r}", expected="one of " + ", ".join(found))
    if engine == "fp32" and against is None and backend == "onnxruntime":
        raise RecipeError(
            "the fp32 graph on ONNX Runtime is the yardstick itself",
            expected="another precision, another bundle, or engines",
            remedy="give --engine fp16, --against BUNDLE, or --backend tensorrt",
        )
    record = found[stage]
    feeds = reference_inputs(record, bundle.reference())
    graphs = onnx.load_from_string(yardstick.graph(wanted[stage])), onnx.load_from_string(bundle.graph(record))
    allowed = bundle.manifest.tolerances[engine] if tolerance is None else tolerance
    if backend == "onnxruntime":
        return diagnose(*graphs, feeds, stage=stage, engine=engine, tolerance=allowed)
    return diagnose_engine(
        *graphs, feeds, _engine_runner(bundle, engine), record=record, engine=engine, tolerance=allowed
    )


def _engine_runner(bundle: Bundle, precision: str) -> Callable[[bytes, StageRecord, Arrays], Arrays]:
    """Builds and runs engines as the bundle's are built, without keeping them.

    Raises:
        UnsupportedError: no GPU with TensorRT.
    """
    from altermoma.deploy.cuda_driver import Cuda
    from altermoma.deploy.engines import StageEngine
    from altermoma.deploy.tensorrt_api import import_tensorrt
    from altermoma.deploy.tensorrt_backend import TensorRtStage
    from altermoma.deploy.tensorrt_builder import build_engine
    from altermoma.deploy.tensorrt_engines import device_here, why_not
    from altermoma.deploy.tensorrt_load import load_plan

    reason = why_not()
    if reason:
        raise UnsupportedError(
            f"no engines here: {reason}",
            expected="an NVIDIA GPU and TensorRT 8.5 or newer",
            remedy="leave out --backend tensorrt",
        )
    trt, options, cuda = import_tensorrt(), options_of(bundle.manifest, precision), Cuda()

    def run(graph: bytes, record: StageRecord, feeds: Arrays) -> Arrays:
        built = build_engine(trt, graph, record, options)
        plain: dict[str, Any] = {"file": "", "sha256": "", "size": len(built.plan), "key": ""}
        made = EngineRecord(
            stage=record.name,
            precision=precision,
            tensorrt=str(trt.__version__),
            device=device_here(),
            version_compatible=options.builder.version_compatible,
            dla_core=options.builder.dla_core if options.on_dla(record.name) else -1,
            stripped=options.builder.strip,
            **plain,
        )
        loaded = load_plan(trt, built.plan, made, graph)
        return TensorRtStage(StageEngine(trt, loaded, record, cuda)).run(feeds)

    return run
