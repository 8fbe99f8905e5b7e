"""Engines built, recorded, loaded and run on a stand-in of every version; and machines that cannot."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tensorrt_double import VERSIONS, FakeCuda, TensorRtDouble, attach_runtime, built_in
from tiny_bundle import frame

from altermoma.deploy import device_kernels, tensorrt_backend, tensorrt_engines
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Gpu, Probe
from altermoma.deploy.manifest import EngineState
from altermoma.deploy.pipeline import Pipeline
from altermoma.deploy.self_check import check_bundle, reference_inputs
from altermoma.deploy.tensorrt_api import import_tensorrt
from altermoma.deploy.tensorrt_backend import open_engines
from altermoma.deploy.tensorrt_builder import BuildLog, BuildOptions
from altermoma.deploy.tensorrt_engines import build_stage, engines_here, why_not
from altermoma.errors import AltermomaError, EngineError, UnsupportedError
from altermoma.storage import write_bytes

GPU = Gpu(name="Test GPU", compute_capability="8.7", memory_mib=1, driver="12.6")

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


@pytest.fixture
def machine(trt: TensorRtDouble, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A machine with a GPU and this TensorRT, as far as the deploy code can see."""
    cuda = FakeCuda()
    built_in(trt, "fp32")
    attach_runtime(trt, cuda)
    parsed: list[bytes] = []
    trt.answers[("OnnxParser", "parse")] = lambda _, model: parsed.append(model) or True
    trt.answers[("Builder", "build_serialized_network")] = lambda *_: bytearray(parsed[-1])
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=GPU))
    for module in (tensorrt_engines, tensorrt_backend):
        monkeypatch.setattr(module, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_backend, "Cuda", lambda: cuda)
    monkeypatch.setattr(device_kernels, "compile_kernels", lambda name, *_: name.encode())
    return cuda


@pytest.mark.usefixtures("machine")
def test_build_record_and_run_whole_frames(trt: TensorRtDouble, copied: Path) -> None:
    """Engines are built, recorded, loaded and run through one path on every version; boxes as on ONNX Runtime."""
    options = BuildOptions(precision="fp32")
    built = engines_here(Bundle.open(copied), options, build="require")
    assert built.manifest.engines.state == "built"
    assert len(built.manifest.engines.built) == 5
    pipeline = Pipeline.from_bundle(copied, "tensorrt", precision="fp32")
    oracle = Pipeline.from_bundle(copied, "onnxruntime", precision="fp32")
    for seed, points in ((1, 300), (2, 40), (3, 300)):
        of = frame(seed, points)
        found, wanted = (p(of.images_vhw3, of.points_p5, of.calibration).boxes for p in (pipeline, oracle))
        np.testing.assert_allclose(found.geometry_m9, wanted.geometry_m9, atol=1e-6)
    told = {verbosity.name for (verbosity,) in trt.called("IExecutionContext", "nvtx_verbosity =")}
    assert told == {"NONE"}, "profilers are told of no layer, though engines are built with their details"
    builds = len(trt.called("Builder", "build_serialized_network"))
    engines_here(Bundle.open(copied), options, build="auto")
    assert len(trt.called("Builder", "build_serialized_network")) == builds


@pytest.mark.parametrize("trt", ["10.3.0"], indirect=True)
@pytest.mark.usefixtures("machine")
def test_killed_build_goes_on_and_stale_plans_go(trt: TensorRtDouble, copied: Path) -> None:
    options = BuildOptions(precision="fp32")
    build = trt.answers[("Builder", "build_serialized_network")]

    def killed(*arguments: Any) -> Any:
        if len(trt.called("Builder", "build_serialized_network")) == 3:
            raise KeyboardInterrupt
        return build(*arguments)

    trt.answers[("Builder", "build_serialized_network")] = killed
    with pytest.raises(KeyboardInterrupt):
        engines_here(Bundle.open(copied), options, build="auto")
    half = Bundle.open(copied)
    assert [r.stage for r in half.manifest.engines.built] == list(half.stages("fp32"))[:2]
    assert half.manifest.engines.state == "not built here"
    with pytest.raises(EngineError, match="no fp32 engine of stage"):
        check_bundle(half, "tensorrt")
    (copied / "engines/camera-fp32-old.plan").write_bytes(b"of another version")
    done = engines_here(half, options, build="auto")
    assert len(trt.called("Builder", "build_serialized_network")) == 3 + 3
    assert done.manifest.engines.state == "built"
    assert {p.name for p in (copied / "engines").glob("*.plan")} == {
        Path(r.file).name for r in done.manifest.engines.built
    }
    checked = check_bundle(copied, "tensorrt").require()
    assert {c.precision for c in checked.tensors} == {"fp32"}


@pytest.mark.parametrize("trt", ["10.3.0"], indirect=True)
@pytest.mark.usefixtures("machine")
def test_a_kill_while_a_faulty_engine_is_built_again_leaves_a_bundle(
    trt: TensorRtDouble, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new plan has the old one's name: the record of the old one must be gone before."""

    def other(*arguments: Any) -> bytearray:
        model = onnx.load_from_string(bytes(build(*arguments)))
        model.doc_string = "other tactics"
        return bytearray(model.SerializeToString())

    def killed(path: Path, payload: bytes) -> None:
        write_bytes(path, payload)
        if path.suffix == ".plan":
            raise KeyboardInterrupt

    options, build = BuildOptions(precision="fp32"), trt.answers[("Builder", "build_serialized_network")]
    built_in(trt, "fp32", "fp16")
    bundle = Bundle.open(copied)
    stage = bundle.stages("fp32")["view"]
    (faulty,) = build_stage(bundle, stage, options, log=BuildLog(faults=[])).manifest.engines.built
    assert "computes in fp16" in faulty.fault
    built_in(trt, "fp32")
    trt.answers[("Builder", "build_serialized_network")] = other
    with monkeypatch.context() as kill:
        kill.setattr(tensorrt_engines, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            build_stage(Bundle.open(copied), stage, options)
    assert Bundle.open(copied).manifest.engines.built == ()
    (sound,) = build_stage(Bundle.open(copied), stage, options).manifest.engines.built
    assert (sound.file, sound.fault) == (faulty.file, "")
    assert sound.sha256 != faulty.sha256


@pytest.mark.parametrize("trt", ["8.6.1"], indirect=True)
@pytest.mark.usefixtures("machine")
def test_frame_beyond_the_profile_is_an_error(copied: Path) -> None:
    engines_here(Bundle.open(copied), BuildOptions(precision="fp32"), build="auto")
    stages = open_engines(Bundle.open(copied), "fp32")
    host = dict(Bundle.open(copied).reference().host)
    host["voxels"] = np.zeros((4001, 5), np.float32)
    with pytest.raises(EngineError, match="axis N0 has size 4001"):
        stages["lidar"].run(host)


@pytest.mark.parametrize("trt", ["8.5.2.2", "11.4.0.106"], indirect=True)
@pytest.mark.usefixtures("machine")
def test_what_tensorrt_says_of_any_engine_is_heard(trt: TensorRtDouble, copied: Path) -> None:
    """TensorRT keeps the first logger of the process: it has to be that of whatever is built or loaded later."""
    bundle = engines_here(Bundle.open(copied), BuildOptions(precision="fp32"), build="require")
    engines = open_engines(bundle, "fp32")
    given = [arguments[0] for kind in ("Builder", "Runtime") for arguments in trt.called(kind, "__init__")]
    assert len(given) == 15
    assert all(logger is given[0] for logger in given)

    def fail(*_: object) -> bool:
        given[0].log(trt.ILogger.Severity.ERROR, "misaligned address")
        return False

    trt.answers[("IExecutionContext", "execute_async_v3")] = fail
    with pytest.raises(EngineError, match="stage head did not run: ERROR: misaligned address"):
        engines["head"].run(reference_inputs(engines["head"].record, bundle.reference()))


@pytest.mark.usefixtures("machine")
def test_engine_of_another_gpu_version_or_graph(trt: TensorRtDouble, copied: Path) -> None:
    built = engines_here(Bundle.open(copied), BuildOptions(precision="fp32"), build="auto")
    with pytest.raises(EngineError, match="no fp16 engine"):
        open_engines(built, "fp16")
    records = built.manifest.engines.built
    other = tuple(dataclasses.replace(r, device="Orin (compute capability 8.7)") for r in records)
    with pytest.raises(EngineError, match="Orin"):
        open_engines(built.with_engines(EngineState(state="built", built=other)), "fp32")
    view = next(r for r in records if r.stage == "view")
    swapped = tuple(dataclasses.replace(view, stage=r.stage) if r.stage == "head" else r for r in records)
    with pytest.raises(EngineError, match="head has tensors"):
        open_engines(built.with_engines(EngineState(state="built", built=swapped)), "fp32")
    trt.answers[("Runtime", "deserialize_cuda_engine")] = lambda *_: None
    with pytest.raises(EngineError, match="does not load"):
        open_engines(built.with_engines(EngineState(state="built", built=records)), "fp32")


def test_this_machine_never_crashes(bundle: Bundle) -> None:
    """With or without a GPU, in a process of its own: an answer or a clear error, never a segfault."""
    code = f"""
from altermoma.deploy.tensorrt_backend import open_engines
from altermoma.deploy.tensorrt_engines import why_not
from altermoma.deploy.bundle import Bundle
from altermoma.errors import AltermomaError
print("reason:", why_not())
try:
    open_engines(Bundle.open(__import__("pathlib").Path({str(bundle.folder)!r})), "fp32")
except AltermomaError as error:
    print("error:", error.found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "error:" in done.stdout


def test_without_gpu_the_bundle_says_so(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=None, reason="no GPU in this test"))
    options = BuildOptions(precision="fp16")
    with pytest.raises(EngineError, match="no GPU in this test") as caught:
        engines_here(Bundle.open(copied), options, build="require")
    assert caught.value.exit_code == 3
    assert "altermoma build" in caught.value.remedy
    engines = engines_here(Bundle.open(copied), options, build="auto").manifest.engines
    assert (engines.state, engines.reason) == ("not built here", "no GPU in this test")
    assert engines.command == "altermoma build BUNDLE"
    assert Bundle.open(copied).manifest.engines == engines
    with pytest.raises(EngineError, match="holds no engines: no GPU in this test"):
        check_bundle(copied, "tensorrt")
    assert (
        engines_here(Bundle.open(copied), options, build="never").manifest.engines.reason
        == "the build was not asked for"
    )


def test_gpu_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=GPU))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "tensorrt cannot be imported" in why_not()
    with pytest.raises(UnsupportedError):
        import_tensorrt()
    old = TensorRtDouble(VERSIONS[0])
    old.__version__ = "8.4.1"
    monkeypatch.setitem(sys.modules, "tensorrt", old)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"8\.4\.1"):
        import_tensorrt()


@pytest.mark.gpu
def test_real_engine_of_one_stage(copied: Path) -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    try:
        engines_here(Bundle.open(copied), BuildOptions(precision="fp32"), build="require")
    except AltermomaError as error:
        pytest.fail(str(error))
    of = frame(1)
    boxes = [
        Pipeline.from_bundle(copied, backend, precision="fp32")(of.images_vhw3, of.points_p5, of.calibration).boxes  # type: ignore[arg-type]
        for backend in ("tensorrt", "onnxruntime")
    ]
    np.testing.assert_allclose(boxes[0].geometry_m9, boxes[1].geometry_m9, atol=1e-4)
