"""The TensorRT path against the names of eight released versions, without a GPU."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorrt_double import API, FakeCuda, TensorRtDouble, attach_runtime, inspector_report
from tiny_bundle import frame

from altermoma.deploy import tensorrt_backend
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Cuda, Gpu, Probe, probe_gpu
from altermoma.deploy.manifest import EngineState
from altermoma.deploy.pipeline import Pipeline
from altermoma.deploy.self_check import check_bundle
from altermoma.deploy.tensorrt_api import import_tensorrt, network_flags, numpy_name, version_of
from altermoma.deploy.tensorrt_backend import engines_here, open_engines, why_not
from altermoma.deploy.tensorrt_builder import BuildOptions, build_engine, engine_key
from altermoma.deploy.tensorrt_inspect import read_layers, require_precision
from altermoma.errors import AltermomaError, EngineError, UnsupportedError

VERSIONS = sorted(p.stem for p in API.glob("*.json"))
DEPLOY = Path(tensorrt_backend.__file__).parent
GPU = Gpu(name="Test GPU", compute_capability="8.7", memory_mib=1, driver="12.6")

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> TensorRtDouble:
    return TensorRtDouble(request.param)


def built_in(trt: TensorRtDouble, *precisions: str) -> None:
    report = inspector_report(version_of(trt), *precisions)
    trt.answers[("EngineInspector", "get_engine_information")] = lambda *_: report
    trt.answers[("IBuilderConfig", "add_optimization_profile")] = lambda *_: 0


def refuse_flags_with_strong_typing(trt: TensorRtDouble) -> None:
    """On 10.x setting FP16 beside STRONGLY_TYPED is an error of the builder."""

    def set_flag(_: Any, flag: Any) -> None:
        assert isinstance(flag, trt.BuilderFlag)
        assert version_of(trt) < (10, 0) or flag.name not in {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}

    trt.answers[("IBuilderConfig", "set_flag")] = set_flag


def options_for(trt: TensorRtDouble, precision: Any) -> BuildOptions:
    late = version_of(trt) >= (8, 6)
    return BuildOptions(
        precision=precision,
        sparsity="2:4",
        workspace_mib=512,
        optimization_level=4 if late else -1,
        version_compatible=late,
        hardware_compatible=late,
    )


def test_the_stand_in_refuses_what_a_version_lacks() -> None:
    new, old = TensorRtDouble("11.4.0.106"), TensorRtDouble("8.5.2.2")
    config = new.Builder(None).create_builder_config()
    for lacking in (
        lambda: new.BuilderFlag.FP16,
        lambda: old.BuilderFlag.VERSION_COMPATIBLE,
        lambda: new.Builder(None).build_engine,
        lambda: setattr(config, "max_workspace_size", 1),
        lambda: setattr(config, "num_optimization_profiles", 1),
        lambda: old.HardwareCompatibilityLevel,
    ):
        with pytest.raises(AttributeError):
            lacking()
    with pytest.raises(TypeError, match="no overload"):
        config.set_memory_pool_limit(1)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_builder_uses_only_what_each_version_has(trt: TensorRtDouble, bundle: Bundle, precision: str) -> None:
    built_in(trt, "fp32", *([precision] if precision != "fp32" else []))
    refuse_flags_with_strong_typing(trt)
    stage = bundle.stages("fp32")["lidar"]
    built = build_engine(trt, bundle.graph(stage), stage, options_for(trt, precision), timing_cache=b"old")
    assert built.plan == b"host"
    assert precision in built.layers.counts
    flags = {flag.name for (flag,) in trt.called("IBuilderConfig", "set_flag")}
    weak = version_of(trt) < (10, 0)
    assert ("FP16" in flags) == (weak and precision != "fp32")
    assert ("INT8" in flags) == (weak and precision == "int8")
    assert "SPARSE_WEIGHTS" in flags
    assert [flag.name for (flag,) in trt.called("IBuilderConfig", "clear_flag")] == ["TF32"]
    assert trt.called("IBuilderConfig", "set_memory_pool_limit") == [(trt.MemoryPoolType.WORKSPACE, 512 << 20)]
    assert trt.called("IBuilderConfig", "create_timing_cache") == [(b"old",)]
    shapes = {call[0]: call[1:] for call in trt.called("IOptimizationProfile", "set_shape")}
    assert shapes["voxels"] == ((1, 5), (200, 5), (4000, 5))
    assert "bev_table" not in shapes


def test_network_flags_by_name(trt: TensorRtDouble) -> None:
    wanted = {8: 1 << 0, 10: 1 << 1, 11: 1 << 0}[version_of(trt)[0]]
    assert network_flags(trt) == wanted


def test_static_stage_needs_no_profile(trt: TensorRtDouble, bundle: Bundle) -> None:
    built_in(trt, "fp32")
    stage = bundle.stages("fp32")["camera"]
    build_engine(trt, bundle.graph(stage), stage, BuildOptions(precision="fp32"))
    assert not trt.called("Builder", "create_optimization_profile")


def test_options_that_a_version_lacks_are_errors(bundle: Bundle) -> None:
    trt = TensorRtDouble("8.5.2.2")
    built_in(trt, "fp32")
    stage = bundle.stages("fp32")["head"]
    for change in ({"optimization_level": 3}, {"version_compatible": True}, {"hardware_compatible": True}):
        options = dataclasses.replace(BuildOptions(precision="fp32"), **change)  # type: ignore[arg-type]
        with pytest.raises(EngineError, match=r"TensorRT 8\.5\.2"):
            build_engine(trt, b"", stage, options)


def test_parser_errors_name_the_node(trt: TensorRtDouble, bundle: Bundle) -> None:
    error_class = "ParserError" if hasattr(trt, "ParserError") else "IParserError"
    trt.answers |= {
        ("OnnxParser", "parse"): lambda *_: False,
        ("OnnxParser", "num_errors"): lambda _: 1,
        ("OnnxParser", "get_error"): lambda *_: trt.make(error_class),
        (error_class, "desc"): lambda _: "unsupported operator Unique",
        (error_class, "node"): lambda _: 42,
        (error_class, "node_name"): lambda _: "Unique_42",
    }
    with pytest.raises(EngineError, match=r"node (Unique_)?42: unsupported operator Unique"):
        build_engine(trt, b"", bundle.stages("fp32")["head"], BuildOptions(precision="fp32"))


def test_failed_build_tells_the_builders_message(trt: TensorRtDouble, bundle: Bundle) -> None:
    def fail(_: Any, network: Any, config: Any) -> None:
        logger = trt.called("Builder", "__init__")[0][0]
        logger.log(trt.ILogger.Severity.ERROR, "out of memory in tactic 7")

    trt.answers[("Builder", "build_serialized_network")] = fail
    trt.answers[("IBuilderConfig", "add_optimization_profile")] = lambda *_: 0
    with pytest.raises(EngineError, match="out of memory in tactic 7") as caught:
        build_engine(trt, b"", bundle.stages("fp32")["lidar"], BuildOptions(precision="fp32"))
    assert "workspace_mib" in caught.value.remedy


@pytest.mark.parametrize(
    ("asked", "found", "good"),
    [
        ("fp32", ("fp32",), True),
        ("fp32", ("fp32", "fp16"), False),
        ("fp16", ("fp32", "fp16"), True),
        ("fp16", ("fp32",), False),
        ("int8", ("fp16", "fp32"), False),
        ("int8", ("int8", "fp16"), True),
        ("fp16", (), False),
    ],
)
@pytest.mark.parametrize("version", [(8, 6), (10, 3), (11, 4)])
def test_engine_of_another_precision_is_an_error(
    asked: str, found: tuple[str, ...], good: bool, version: tuple[int, int]
) -> None:
    layers = read_layers(inspector_report(version, *found), [])
    if good:
        require_precision("camera", asked, layers)
        return
    with pytest.raises(EngineError, match="camera"):
        require_precision("camera", asked, layers)


def test_inspector_of_names_only_cannot_be_verified() -> None:
    with pytest.raises(EngineError, match="does not tell"):
        require_precision("camera", "fp32", read_layers(json.dumps({"Layers": ["conv1", "conv2"]}), []))
    with pytest.raises(EngineError, match="cannot be read"):
        read_layers("no json", [])


def test_sparse_layers_are_read_from_the_log() -> None:
    log = [
        "INFO: (Sparsity) Layers eligible for sparse math: conv1, conv2",
        "INFO: (Sparsity) TRT inference plan picked sparse implementation for layers: conv2",
    ]
    layers = read_layers(inspector_report((10, 3), "fp16"), log)
    assert layers.sparse_eligible == ("conv1", "conv2")
    assert layers.sparse_picked == ("conv2",)


def test_key_changes_with_everything_an_engine_depends_on() -> None:
    base = {"onnx_sha256": "a", "options": BuildOptions(precision="fp16"), "tensorrt": "10.3.0", "device": "Orin"}
    changes = {"onnx_sha256": "b", "options": BuildOptions(precision="fp32"), "tensorrt": "10.4", "device": "Thor"}
    keys = {engine_key(**{**base, name: value}) for name, value in changes.items()}  # type: ignore[arg-type]
    assert len(keys | {engine_key(**base)}) == 5  # type: ignore[arg-type]


@pytest.fixture
def machine(trt: TensorRtDouble, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A machine with a GPU and this TensorRT, as far as the deploy code can see."""
    cuda = FakeCuda()
    built_in(trt, "fp32")
    attach_runtime(trt, cuda)
    parsed: list[bytes] = []
    trt.answers[("OnnxParser", "parse")] = lambda _, model: parsed.append(model) or True
    trt.answers[("Builder", "build_serialized_network")] = lambda *_: bytearray(parsed[-1])
    monkeypatch.setattr(tensorrt_backend, "probe_gpu", lambda: Probe(gpu=GPU))
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_backend, "Cuda", lambda: cuda)
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


def test_every_name_of_the_optional_lookups_exists_somewhere() -> None:
    """Names given to `member` and `required` are strings, which no type checker sees."""
    known: set[str] = set()
    for version in VERSIONS:
        api = json.loads((API / f"{version}.json").read_text())
        known |= {n for members in api["enums"].values() for n in members} | set(api["classes"]) | set(api["enums"])
        known |= {n for c in api["classes"].values() for n in (*c["methods"], *c.get("props", {}))}
    asked: set[str] = set()
    for path in DEPLOY.glob("tensorrt_*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id in {"member", "required"}
            ):
                asked |= {a.value for a in call.args[1:2] if isinstance(a, ast.Constant)}
    assert {"VERSION_COMPATIBLE", "HardwareCompatibilityLevel", "node_name"} <= asked
    assert asked <= known


def test_types_by_name(trt: TensorRtDouble) -> None:
    assert numpy_name(trt, trt.DataType.HALF) == "float16"
    assert numpy_name(trt, trt.DataType.INT32) == "int32"
    with pytest.raises(EngineError, match="type"):
        numpy_name(trt, "no type")


def test_this_machine_never_crashes(bundle: Bundle) -> None:
    """With or without a GPU, in a process of its own: an answer or a clear error, never a segfault."""
    code = f"""
from altermoma.deploy.tensorrt_backend import why_not, open_engines
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
    monkeypatch.setattr(tensorrt_backend, "probe_gpu", lambda: Probe(gpu=None, reason="no GPU in this test"))
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
    monkeypatch.setattr(tensorrt_backend, "probe_gpu", lambda: Probe(gpu=GPU))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "tensorrt cannot be imported" in why_not()
    with pytest.raises(UnsupportedError):
        import_tensorrt()
    old = TensorRtDouble(VERSIONS[0])
    old.__version__ = "8.4.1"
    monkeypatch.setitem(sys.modules, "tensorrt", old)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"8\.4\.1"):
        import_tensorrt()


FAKE_DRIVER = """
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
static long allocated = 0;
int cuInit(unsigned f) { return INIT; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Fake GPU", n); return 0; }
int cuDeviceTotalMem_v2(size_t *b, int d) { *b = (size_t)32 << 30; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 7 : -1; return 0; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
int cuCtxSetCurrent(void *c) { return c ? 0 : 201; }
int cuStreamCreate(void **s, unsigned f) { *s = (void *)0x7f0011223344; return 0; }
int cuMemAlloc_v2(uint64_t *p, size_t n) {
    if (n > (1u << 30)) return 2;
    allocated++; *p = (uint64_t)malloc(n); return 0;
}
int cuMemFree_v2(uint64_t p) { allocated--; free((void *)p); return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { allocated++; *p = malloc(n); return 0; }
int cuMemFreeHost(void *p) { allocated--; free(p); return 0; }
static int stream_ok(void *s) { return s == (void *)0x7f0011223344 ? 0 : 400; }
int cuMemcpyHtoDAsync_v2(uint64_t d, const void *h, size_t n, void *s) { memcpy((void *)d, h, n); return stream_ok(s); }
int cuMemcpyDtoHAsync_v2(void *h, uint64_t d, size_t n, void *s) { memcpy(h, (void *)d, n); return stream_ok(s); }
int cuStreamSynchronize(void *s) { return stream_ok(s); }
long fake_allocated(void) { return allocated; }
"""


def fake_driver(folder: Path, *, init: int = 0, count: int = 1) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = folder / "driver.c", folder / f"libfake{init}{count}.so"
    source.write_text(FAKE_DRIVER.replace("INIT", str(init)).replace("COUNT", str(count)))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


@pytest.mark.parametrize(
    ("init", "count", "said"), [(100, 0, "cuInit gives error 100"), (803, 1, "error 803"), (0, 0, "lists no GPU")]
)
def test_probe_says_why_there_is_no_gpu(tmp_path: Path, init: int, count: int, said: str) -> None:
    probe = probe_gpu((fake_driver(tmp_path, init=init, count=count),))
    assert probe.gpu is None
    assert said in probe.reason
    with pytest.raises(EngineError, match=said):
        Cuda((fake_driver(tmp_path, init=init, count=count),))


def test_probe_without_a_driver() -> None:
    assert probe_gpu(("libno-such-driver.so.1",)).reason == "no NVIDIA driver library (libno-such-driver.so.1)"


def test_driver_calls_pass_whole_addresses_and_free_everything(tmp_path: Path) -> None:
    """Through ctypes into a compiled stand-in: 64-bit addresses, the stream, copies, frees."""
    import ctypes
    import gc

    library = fake_driver(tmp_path)
    cuda = Cuda((library,))
    assert cuda.gpu == Gpu(name="Fake GPU", compute_capability="8.7", memory_mib=32768, driver="12.6")
    device, out = cuda.device_buffer(1000), cuda.pinned(1000)
    host = cuda.pinned(1000)
    host[:] = np.arange(1000) % 251
    cuda.upload(device, host, 1000)
    cuda.download(out, device, 999)
    cuda.synchronise()
    np.testing.assert_array_equal(out[:999], host[:999])
    with pytest.raises(EngineError, match="out of memory"):
        cuda.device_buffer(2 << 30)
    counter = ctypes.CDLL(library).fake_allocated
    counter.restype = ctypes.c_long
    assert counter() == 3
    view = host[10:20]
    del device, out, host
    gc.collect()
    assert counter() == 1
    del view
    gc.collect()
    assert counter() == 0


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
