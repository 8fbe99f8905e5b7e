"""Where builder options come from, accelerators, progress, and plans without weights, on every released version."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tensorrt_double import VERSIONS, TensorRtDouble, built_in

from altermoma import progress
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Gpu
from altermoma.deploy.manifest import EngineRecord, Manifest
from altermoma.deploy.targets import read_target
from altermoma.deploy.tensorrt_api import version_of
from altermoma.deploy.tensorrt_builder import BuildOptions, build_engine
from altermoma.deploy.tensorrt_config import options_of, settled, too_old
from altermoma.deploy.tensorrt_load import load_engine, make_runtime, refit_engine, require_fitting
from altermoma.errors import EngineError, RecipeError
from altermoma.recipe import BuilderRecipe

REPO = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


def manifest(bundle: Bundle, *, recipe: dict[str, Any] | None = None, target: dict[str, Any] | None = None) -> Manifest:
    return dataclasses.replace(bundle.manifest, recipe=recipe or {}, target=target or {})


def test_command_line_before_recipe_before_target(bundle: Bundle) -> None:
    target = {"builder": {"workspace_mib": 100, "optimization_level": 2, "dla_stages": ["camera"]}}
    recipe = {"builder": {"workspace_mib": 200, "refit": True}, "engine": {"sparsity": "2:4"}}
    found = options_of(manifest(bundle, recipe=recipe, target=target), "fp16", BuilderRecipe(optimization_level=5))
    assert (found.precision, found.sparsity) == ("fp16", "2:4")
    assert found.builder == BuilderRecipe(workspace_mib=200, optimization_level=5, dla_stages=("camera",), refit=True)
    assert settled() == BuilderRecipe()
    with pytest.raises(RecipeError, match="optimization_level = 9"):
        options_of(manifest(bundle), "fp16", BuilderRecipe(optimization_level=9))
    with pytest.raises(RecipeError, match=r"builder\.workspace_mb") as caught:
        options_of(manifest(bundle, target={"builder": {"workspace_mb": 1}}), "fp16")
    assert "workspace_mib" in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("workspace_mib = 4096", ""),
        ("workspace_mb = 4096", "unknown recipe key builder.workspace_mb"),
        ("optimization_level = 6", "optimization_level = 6"),
        ('dla_stages = ["brain"]', "dla_stages"),
    ],
)
def test_builder_options_of_a_target(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "mycar" / "target.toml"
    path.parent.mkdir()
    text = (REPO / "deploy/desktop-ada/target.toml").read_text()
    path.write_text(f"{text}\n[builder]\n{line}\n")
    if said:
        with pytest.raises(RecipeError, match=said):
            read_target(path)
        return
    target = read_target(path)
    assert target.builder == BuilderRecipe(workspace_mib=4096)
    assert json.loads(json.dumps(target.to_dict()))["builder"]["workspace_mib"] == 4096


def test_a_bundle_for_a_later_tensorrt_is_not_built_by_an_earlier(trt: TensorRtDouble, bundle: Bundle) -> None:
    reason = too_old(trt, manifest(bundle, target={"tensorrt": "10.3.0", "name": "orin-jp62"}))
    assert bool(reason) == (version_of(trt) < (10, 3))
    assert "orin-jp62" in reason or not reason
    assert too_old(trt, manifest(bundle)) == ""
    assert too_old(trt, manifest(bundle, target={"tensorrt": "8.5.2"})) == ""


class TestAccelerator:
    options = BuildOptions(precision="fp16", builder=BuilderRecipe(dla_stages=("head", "lidar")))

    def prepared(self, trt: TensorRtDouble, lacks: tuple[str, ...] = (), cores: int = 2) -> None:
        """A parsed network of three layers and a constant, some of which the accelerator lacks."""
        built_in(trt, "fp16")
        layers = [("conv", "CONVOLUTION"), ("table", "GATHER"), ("relu", "ACTIVATION"), ("weights", "CONSTANT")]

        def layer(_: Any, index: int) -> Any:
            made = trt.make("ILayer")
            name, kind = layers[index]
            for key, value in {"_name": name, "_type": getattr(trt.LayerType, kind)}.items():
                object.__setattr__(made, key, value)
            return made

        trt.answers |= {
            ("INetworkDefinition", "num_layers"): lambda _: len(layers),
            ("INetworkDefinition", "get_layer"): layer,
            ("IBuilderConfig", "can_run_on_DLA"): lambda _, item: item.name not in {*lacks, "weights"},
            ("Builder", "num_DLA_cores"): lambda _: cores,
        }

    def test_whole_stage(self, trt: TensorRtDouble, bundle: Bundle) -> None:
        self.prepared(trt)
        built = build_engine(trt, b"", bundle.stages("fp16")["head"], self.options)
        assert built.dla_lacks == 0
        assert trt.called("IBuilderConfig", "default_device_type =") == [(trt.DeviceType.DLA,)]
        assert trt.called("IBuilderConfig", "DLA_core =") == [(0,)]
        assert "GPU_FALLBACK" not in {flag.name for (flag,) in trt.called("IBuilderConfig", "set_flag")}
        assert trt.called("Runtime", "DLA_core =") == [(0,)], "read back on the accelerator that it was built for"

    def test_stages_that_were_not_asked_for_stay(self, trt: TensorRtDouble, bundle: Bundle) -> None:
        self.prepared(trt)
        build_engine(trt, b"", bundle.stages("fp16")["camera"], self.options)
        assert not trt.called("IBuilderConfig", "default_device_type =")

    def test_a_layer_that_it_lacks_is_named(
        self, trt: TensorRtDouble, bundle: Bundle, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.prepared(trt, lacks=("table",))
        stage = bundle.stages("fp16")["head"]
        with pytest.raises(EngineError, match=r"cannot run 1 of 4 layers: table \(GATHER\)") as caught:
            build_engine(trt, b"", stage, self.options)
        assert "gpu_fallback" in caught.value.remedy
        permitted = BuilderRecipe(dla_stages=("head",), gpu_fallback=True)
        assert build_engine(trt, b"", stage, BuildOptions(precision="fp16", builder=permitted)).dla_lacks == 1
        assert "table (GATHER)" in capfd.readouterr().err
        self.prepared(trt, lacks=("conv", "table", "relu"))
        with pytest.raises(EngineError, match="none of its layers"):
            build_engine(trt, b"", stage, BuildOptions(precision="fp16", builder=permitted))

    def test_where_it_cannot_be(self, trt: TensorRtDouble, bundle: Bundle) -> None:
        self.prepared(trt, cores=0)
        with pytest.raises(EngineError, match="finds no DLA here"):
            build_engine(trt, b"", bundle.stages("fp16")["head"], self.options)
        self.prepared(trt)
        with pytest.raises(EngineError, match=r"voxels.* vary in size"):
            build_engine(trt, b"", bundle.stages("fp16")["lidar"], self.options)
        if version_of(trt) < (10, 0):
            whole = dataclasses.replace(self.options, precision="int8")
            with pytest.raises(EngineError, match="takes no Q/DQ pairs there"):
                build_engine(trt, b"", bundle.stages("fp16")["head"], whole)
        wide = dataclasses.replace(self.options, precision="fp32")
        with pytest.raises(EngineError, match="DLA in fp32"):
            build_engine(trt, b"", bundle.stages("fp32")["head"], wide)


def test_progress_is_shown_where_the_builder_tells(
    trt: TensorRtDouble, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    built_in(trt, "fp32")
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.02)

    def build(*_: Any) -> bytearray:
        import time

        for (monitor,) in trt.called("IBuilderConfig", "progress_monitor ="):
            monitor.phase_start("Building", None, 5)
            monitor.phase_start("Tactics", "Building", 3)
            assert monitor.step_complete("Tactics", 1)
            time.sleep(0.1)
            monitor.phase_finish("Tactics")
            monitor.phase_finish("Building")
        return bytearray(b"plan")

    trt.answers[("Builder", "build_serialized_network")] = build
    build_engine(trt, b"", bundle.stages("fp32")["head"], BuildOptions(precision="fp32"))
    assert ("head: Tactics: 2 of 3" in capfd.readouterr().err) == (version_of(trt) >= (10, 0))


@pytest.mark.parametrize("trt", ["10.3.0", "11.4.0.106"], indirect=True)
def test_ctrl_c_ends_a_build_and_does_not_pass_through_tensorrt(
    trt: TensorRtDouble, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in(trt, "fp32")
    went_on: list[bool] = []

    def build(*_: Any) -> bytearray | None:
        ((monitor,),) = trt.called("IBuilderConfig", "progress_monitor =")
        monitor.phase_start("Building", None, 5)
        monkeypatch.setattr("altermoma.deploy.tensorrt_progress._Phases.step", interrupted)
        went_on.append(monitor.step_complete("Building", 0))
        return None

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    trt.answers[("Builder", "build_serialized_network")] = build
    with pytest.raises((KeyboardInterrupt, EngineError)) as caught:
        build_engine(trt, b"", bundle.stages("fp32")["head"], BuildOptions(precision="fp32"))
    assert went_on == [False]
    assert caught.type is KeyboardInterrupt


def record(**changes: Any) -> EngineRecord:
    plain: dict[str, Any] = {
        "stage": "head",
        "precision": "fp16",
        "file": "engines/head.plan",
        "sha256": "",
        "size": 1,
        "key": "k",
        "tensorrt": "10.3.0",
        "device": "Orin (compute capability 8.7)",
    }
    return EngineRecord(**{**plain, **changes})


@pytest.mark.parametrize(
    ("here", "device", "changes", "fits"),
    [
        ("10.3.0", ("Orin", "8.7"), {}, True),
        ("10.3.0", ("RTX 3090", "8.6"), {}, False),
        ("10.9.0.34", ("Orin", "8.7"), {}, False),
        ("10.9.0.34", ("Orin", "8.7"), {"version_compatible": True}, True),
        ("10.0.1", ("Orin", "8.7"), {"version_compatible": True}, False),
        ("11.4.0.106", ("Orin", "8.7"), {"version_compatible": True}, False),
        ("10.3.0", ("RTX 3090", "8.6"), {"hardware_compatible": "ampere_plus"}, True),
        ("10.3.0", ("T4", "7.5"), {"hardware_compatible": "ampere_plus"}, False),
        ("10.3.0", ("Orin NX", "8.7"), {"hardware_compatible": "same_compute_capability"}, True),
        ("10.3.0", ("RTX 3090", "8.6"), {"hardware_compatible": "same_compute_capability"}, False),
    ],
)
def test_plans_fit_where_they_were_built_to_fit(
    here: str, device: tuple[str, str], changes: dict[str, Any], fits: bool
) -> None:
    trt = TensorRtDouble(here)
    gpu = Gpu(name=device[0], compute_capability=device[1], memory_mib=1, driver="12.6")
    if fits:
        require_fitting(record(**changes), trt, gpu)
        return
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 on Orin") as caught:
        require_fitting(record(**changes), trt, gpu)
    assert device[0] in caught.value.expected


def test_a_version_compatible_plan_may_run_its_own_code(trt: TensorRtDouble) -> None:
    if version_of(trt) < (8, 6):
        with pytest.raises(EngineError, match="engine_host_code_allowed"):
            make_runtime(trt, None, host_code=True)
        return
    make_runtime(trt, None)
    assert not trt.called("Runtime", "engine_host_code_allowed =")
    make_runtime(trt, None, host_code=True)
    assert trt.called("Runtime", "engine_host_code_allowed =") == [(True,)]


def test_stripped_plans_get_the_weights_of_their_graph(trt: TensorRtDouble, copied: Path) -> None:
    engine, messages = trt.make("ICudaEngine"), ["ERROR: no such weights"]
    if version_of(trt) < (10, 0):
        with pytest.raises(EngineError, match="OnnxParserRefitter"):
            refit_engine(trt, engine, b"graph", None, messages)
        return
    trt.answers[("Refitter", "get_missing_weights")] = lambda _: []
    refit_engine(trt, engine, b"graph", None, messages)
    assert trt.called("OnnxParserRefitter", "refit_from_bytes") == [(b"graph",)]
    assert len(trt.called("Refitter", "refit_cuda_engine")) == 1
    trt.answers[("Refitter", "refit_cuda_engine")] = lambda _: False
    with pytest.raises(EngineError, match="no such weights"):
        refit_engine(trt, engine, b"graph", None, messages)
    trt.answers[("Refitter", "get_missing_weights")] = lambda _: ["conv1.weight"]
    with pytest.raises(EngineError, match=r"no weights for conv1\.weight"):
        refit_engine(trt, engine, b"graph", None, messages)


@pytest.mark.parametrize("trt", ["10.3.0", "11.4.0.106"], indirect=True)
def test_loading_refits_a_stripped_engine_with_the_bundles_graph(trt: TensorRtDouble, copied: Path) -> None:
    from altermoma.storage import sha256_of

    (copied / "engines").mkdir()
    (copied / "engines/head.plan").write_bytes(b"p")
    trt.answers[("Refitter", "get_missing_weights")] = lambda _: []
    held = record(sha256=sha256_of(copied / "engines/head.plan"), stripped=True)
    bundle = Bundle.open(copied)
    load_engine(trt, bundle, held)
    assert trt.called("OnnxParserRefitter", "refit_from_bytes") == [(bundle.graph(bundle.stages("fp16")["head"]),)]
    trt.calls.clear()
    load_engine(trt, bundle, dataclasses.replace(held, stripped=False))
    assert not trt.called("Refitter", "__init__")
