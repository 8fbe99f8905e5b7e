"""`altermoma build` on a stand-in of TensorRT: what it shows, and what becomes of everything that can go wrong."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda_double import FakeCuda
from tensorrt_double import VERSIONS, TensorRtDouble, attach_runtime, built_in, inspector_report

from altermoma import storage
from altermoma.cli.app import app
from altermoma.deploy import tensorrt_backend, tensorrt_engines
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Gpu, Probe
from altermoma.deploy.engine_report import engine_table, require_sparse
from altermoma.deploy.manifest import EngineRecord
from altermoma.deploy.tensorrt_backend import open_engines
from altermoma.deploy.tensorrt_builder import BuildOptions
from altermoma.deploy.tensorrt_engines import engines_here
from altermoma.errors import AltermomaError, BundleError, EngineError, StorageError

GPU = Gpu(name="Test GPU", compute_capability="8.7", memory_mib=1, driver="12.6")
FP32 = BuildOptions(precision="fp32")

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


def on_this_machine(trt: TensorRtDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU and this TensorRT, as far as the deploy code can see; plans are the graphs themselves."""
    cuda, parsed = FakeCuda(), list[bytes]()
    built_in(trt, "fp32")
    attach_runtime(trt, cuda)
    trt.answers[("OnnxParser", "parse")] = lambda _, model: parsed.append(model) or True
    trt.answers[("Builder", "build_serialized_network")] = lambda *_: bytearray(parsed[-1])
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=GPU))
    for module in (tensorrt_engines, tensorrt_backend):
        monkeypatch.setattr(module, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_backend, "Cuda", lambda: cuda)


@pytest.fixture
def machine(trt: TensorRtDouble, monkeypatch: pytest.MonkeyPatch) -> TensorRtDouble:
    on_this_machine(trt, monkeypatch)
    return trt


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> TensorRtDouble:
    trt = TensorRtDouble("10.3.0")
    on_this_machine(trt, monkeypatch)
    return trt


@pytest.mark.usefixtures("machine")
def test_what_was_asked_and_what_was_found_is_shown(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["build", str(copied), "--engine", "fp32", "--workspace-mib", "64"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "| camera | fp32 | fp32 1 of 1 |" in shown
    assert "fp32: engines agree with the reference frame and, by polygraphy, with ONNX Runtime" in shown


def sparse_log(trt: TensorRtDouble, eligible: str, picked: str) -> None:
    report = inspector_report((10, 3), "fp32")

    def inspect(*_: Any) -> str:
        logger = trt.called("Builder", "__init__")[-1][0]
        info = trt.ILogger.Severity.INFO
        logger.log(info, f"(Sparsity) Layers eligible for sparse math: {eligible}")
        logger.log(info, f"(Sparsity) TRT inference plan picked sparse implementation for layers: {picked}")
        return report

    trt.answers[("EngineInspector", "get_engine_information")] = inspect


@pytest.mark.parametrize(
    ("eligible", "picked", "said"),
    [("conv1, conv2", "conv2", ""), ("conv1", "", "dense kernels were faster"), ("", "", "none is eligible")],
)
def test_sparsity_asked_and_found(one: TensorRtDouble, copied: Path, eligible: str, picked: str, said: str) -> None:
    sparse_log(one, eligible, picked)
    options = BuildOptions(precision="fp32", sparsity="2:4")
    manifest = engines_here(Bundle.open(copied), options, build="require").manifest
    built, stages = manifest.engines.built, manifest.stages
    if said:
        with pytest.raises(EngineError, match=said):
            require_sparse(built)
    else:
        require_sparse(built)
        assert "| head | fp32 2:4 | fp32 1 of 1 | 2 | 1 | GPU |" in engine_table(built, stages)
    dense = tuple(dataclasses.replace(record, sparsity="dense") for record in built)
    require_sparse(dense)


def left_whole(folder: Path, stages: int) -> None:
    """Nothing half-written: a bundle that opens, with so many engines, and no drafts."""
    assert len(Bundle.open(folder).manifest.engines.built) == stages
    assert [path.name for path in folder.rglob(".*")] == []


def failing(trt: TensorRtDouble, place: int, failure: Callable[[], Any]) -> None:
    """The build of one stage comes to something else."""
    build = trt.answers[("Builder", "build_serialized_network")]

    def third(*arguments: Any) -> Any:
        here = len(trt.called("Builder", "build_serialized_network")) == place
        return failure() if here else build(*arguments)

    trt.answers[("Builder", "build_serialized_network")] = third


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


@pytest.mark.parametrize("how", ["message", "MemoryError", "RuntimeError"])
def test_out_of_memory_in_the_third_build(machine: TensorRtDouble, copied: Path, how: str) -> None:
    def refuse() -> None:
        logger = machine.called("Builder", "__init__")[-1][0]
        logger.log(machine.ILogger.Severity.ERROR, "Requested amount of GPU memory could not be allocated")

    errors = {"MemoryError": MemoryError("std::bad_alloc"), "RuntimeError": RuntimeError("CUDA out of memory")}
    failing(machine, 3, raising(errors[how]) if how in errors else refuse)
    with pytest.raises(EngineError, match=r"could not build stage") as caught:
        engines_here(Bundle.open(copied), FP32, build="require")
    assert caught.value.exit_code == 3
    assert "builder.workspace_mib" in caught.value.remedy
    left_whole(copied, 2)
    engines_here(Bundle.open(copied), FP32, build="require")
    left_whole(copied, 5)


def test_a_builder_that_does_not_start(machine: TensorRtDouble, copied: Path) -> None:
    def no_builder(*_: Any) -> None:
        raise TypeError("factory function returned nullptr")

    machine.answers[("Builder", "__init__")] = no_builder
    with pytest.raises(EngineError, match="does not start") as caught:
        engines_here(Bundle.open(copied), FP32, build="require")
    assert "nvidia-smi" in caught.value.remedy
    left_whole(copied, 0)


def test_a_profile_that_does_not_fit(machine: TensorRtDouble, copied: Path) -> None:
    machine.answers[("IBuilderConfig", "add_optimization_profile")] = lambda *_: -1
    with pytest.raises(EngineError, match="refuses the optimisation profile") as caught:
        engines_here(Bundle.open(copied), FP32, build="require")
    assert "stage contract" in caught.value.remedy
    left_whole(copied, len({"camera", "fusion", "head"}))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("suffix", [".plan", ".cache", "manifest.json"])
def test_a_full_or_read_only_disk(
    one: TensorRtDouble, copied: Path, monkeypatch: pytest.MonkeyPatch, number: int, suffix: str
) -> None:
    """Wherever the write fails, the bundle stays what it was."""
    real = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(suffix):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="cannot write"):
        engines_here(Bundle.open(copied), FP32, build="require")
    monkeypatch.undo()
    left_whole(copied, 0)


@pytest.mark.parametrize(
    "damage", ["first byte", "middle byte", "last byte", "truncated", "grown", "emptied", "missing"]
)
def test_every_damage_to_a_plan_is_named(one: TensorRtDouble, copied: Path, damage: str) -> None:
    built = engines_here(Bundle.open(copied), FP32, build="require").manifest.engines.built
    path = copied / built[1].file
    payload = bytearray(path.read_bytes())
    place = {"first byte": 0, "middle byte": len(payload) // 2, "last byte": len(payload) - 1}
    if damage in place:
        payload[place[damage]] ^= 1
    payload = {"truncated": payload[:-1], "grown": payload + b"\0", "emptied": bytearray()}.get(damage, payload)
    path.write_bytes(payload)
    if damage == "missing":
        path.unlink()
        lost = Bundle.open(copied)
        assert path.name in lost.manifest.engines.reason
        with pytest.raises(EngineError, match=f"no fp32 engine of stage {built[1].stage}"):
            open_engines(lost, "fp32")
        return
    with pytest.raises(BundleError, match=path.name):
        Bundle.open(copied)


def test_a_plan_altered_after_opening_and_swapped_plans(one: TensorRtDouble, copied: Path) -> None:
    bundle = engines_here(Bundle.open(copied), FP32, build="require")
    first, second = (copied / record.file for record in bundle.manifest.engines.built[:2])
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(BundleError, match="altered"):
        open_engines(bundle, "fp32")


def records(bundle: Bundle) -> tuple[EngineRecord, ...]:
    return bundle.manifest.engines.built


def test_another_gpu_version_option_or_graph_means_another_build(
    one: TensorRtDouble, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {record.key for record in records(engines_here(Bundle.open(copied), FP32, build="require"))}
    one.__version__ = "10.4.0"
    later = engines_here(Bundle.open(copied), FP32, build="require")
    assert {record.tensorrt for record in records(later)} == {"10.4.0"}
    other = dataclasses.replace(GPU, name="Another GPU")
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=other))
    with pytest.raises(EngineError, match="Test GPU"):
        open_engines(later, "fp32")
    moved = engines_here(Bundle.open(copied), FP32, build="require")
    from altermoma.recipe import BuilderRecipe

    options = BuildOptions(precision="fp32", builder=BuilderRecipe(optimization_level=2))
    tuned = engines_here(Bundle.open(copied), options, build="require")
    for bundle in (later, moved, tuned):
        assert not keys & {record.key for record in records(bundle)}
        keys |= {record.key for record in records(bundle)}
    assert len(keys) == 4 * 5
    assert len(list((copied / "engines").glob("*.plan"))) == 5, "stale plans are gone"
    assert len(list((copied / "engines").glob("*.cache"))) == 3, "one timing cache for each version and GPU"


CRASHING = '''
import os

__version__ = "10.3.0"


def __getattr__(name):
    """As the real library without a GPU: whatever is touched ends the process."""
    if name.startswith("__"):
        raise AttributeError(name)
    os.abort()
'''


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("build", "BUNDLE"), 3),
        (("bench", "BUNDLE", "--backend", "tensorrt", "--engine", "fp32"), 3),
        (("debug-precision", "BUNDLE", "--stage", "head", "--backend", "tensorrt"), 2),
    ],
)
def test_tensorrt_without_a_gpu_never_crashes(
    bundle: Bundle, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    """A TensorRT that ends the process as soon as it is touched: the GPU is asked for first, by the driver."""
    (tmp_path / "tensorrt.py").write_text(CRASHING)
    start = "import sys; from altermoma.cli.app import main; sys.argv[0] = 'altermoma'; main()"
    words = [str(bundle.folder) if word == "BUNDLE" else word for word in arguments]
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])
    # No device is visible, whatever this machine has.
    env = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", start, *words], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == code, done.stderr
    assert "Expected:" in done.stderr
    assert "What to do:" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_bundles_end_before_any_build(one: TensorRtDouble, copied: Path) -> None:
    path = copied / "manifest.json"
    whole = path.read_text()
    for text in (whole.replace('"schema": 1', '"schema": 2'), whole[:-20], whole.replace("toy", "joy"), ""):
        path.write_text(text)
        with pytest.raises(AltermomaError, match=r"manifest\.json"):
            app(["build", str(copied)], standalone_mode=False)
    assert not one.called("Builder", "__init__")


def test_a_run_records_what_was_asked_and_found(one: TensorRtDouble, copied: Path, tmp_path: Path) -> None:
    """The engine step of altermoma-export, and the summary that it ends in."""
    from altermoma.recipe import EngineRecipe, Recipe
    from altermoma.report.summary import Engines
    from altermoma.workflow.engines import build_engines
    from altermoma.workflow.summarise import _engines

    record = build_engines(EngineRecipe(precision="fp32"), copied, tmp_path / "out")
    assert (record["state"], record["precisions"]) == ("built", ["fp32"])
    assert next((row["stage"], row["found"]) for row in record["engines"]) == ("camera", {"fp32": 1})
    engines = _engines(Recipe(), record, "bundle")
    assert isinstance(engines, Engines)
    assert len(engines.built) == 5
    assert records(Bundle.open(copied)) == (), "the exported bundle is left as it was"
