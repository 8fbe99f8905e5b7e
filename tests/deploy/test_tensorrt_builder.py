"""The builder against the names of eight released versions, without a GPU."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorrt_double import API, VERSIONS, TensorRtDouble, built_in

from altermoma.deploy import tensorrt_builder
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import AxisRange, StageRecord
from altermoma.deploy.tensorrt_api import network_flags, numpy_name, version_of
from altermoma.deploy.tensorrt_builder import BuildLog, BuildOptions, build_engine, engine_key
from altermoma.errors import EngineError
from altermoma.recipe import BuilderRecipe

DEPLOY = Path(tensorrt_builder.__file__).parent
STAGE = StageRecord(name="s", file="", inputs=(), outputs=(), axes={"N": AxisRange(min=1, opt=5, max=9)})

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


def refuse_flags_with_strong_typing(trt: TensorRtDouble) -> None:
    """On 10.x setting FP16 beside STRONGLY_TYPED is an error of the builder."""

    def set_flag(_: Any, flag: Any) -> None:
        assert isinstance(flag, trt.BuilderFlag)
        assert version_of(trt) < (10, 0) or flag.name not in {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}

    trt.answers[("IBuilderConfig", "set_flag")] = set_flag


def options_for(trt: TensorRtDouble, precision: Any) -> BuildOptions:
    late = version_of(trt) >= (8, 6)
    builder = BuilderRecipe(
        workspace_mib=512,
        optimization_level=4 if late else -1,
        tactic_dram_mib=256 if late else 0,
        version_compatible=late,
        hardware_compatible="ampere_plus" if late else "none",
        refit=True,
    )
    return BuildOptions(precision=precision, sparsity="2:4", builder=builder)


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
    pools = {pool.name: size for pool, size in trt.called("IBuilderConfig", "set_memory_pool_limit")}
    late = version_of(trt) >= (8, 6)
    assert pools == {"WORKSPACE": 512 << 20} | ({"TACTIC_DRAM": 256 << 20} if late else {})
    assert ("VERSION_COMPATIBLE" in flags) == late
    assert "REFIT" in flags
    previews = [(feature.name, on) for feature, on in trt.called("IBuilderConfig", "set_preview_feature")]
    assert previews == ([("PROFILE_SHARING_0806", True)] if version_of(trt) == (8, 6) else [])
    parser_flags = [flag.name for (flag,) in trt.called("OnnxParser", "set_flag")]
    assert parser_flags == (["NATIVE_INSTANCENORM"] if late else [])
    assert trt.called("IBuilderConfig", "create_timing_cache") == [(b"old",)]
    shapes = {call[0]: call[1:] for call in trt.called("IOptimizationProfile", "set_shape")}
    assert shapes["voxels"] == ((1, 5), (200, 5), (4000, 5))
    assert "bev_table" not in shapes


def test_8_6_does_not_load_libraries_that_it_does_not_compute_with(trt: TensorRtDouble, bundle: Bundle) -> None:
    """cuBLAS and cuDNN are tactic sources by default, and must then be installed (NvInfer.h 8.6)."""
    built_in(trt, "fp32")
    trt.answers[("IBuilderConfig", "get_tactic_sources")] = lambda _: 0b11111
    stage = bundle.stages("fp32")["camera"]
    build_engine(trt, bundle.graph(stage), stage, BuildOptions(precision="fp32"))
    kept = 1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS) | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)
    assert trt.called("IBuilderConfig", "set_tactic_sources") == ([(kept,)] if version_of(trt) == (8, 6) else [])


@pytest.mark.parametrize("trt", ["8.6.1"], indirect=True)
def test_libraries_that_stay_are_an_error(trt: TensorRtDouble, bundle: Bundle) -> None:
    built_in(trt, "fp32")
    trt.answers[("IBuilderConfig", "set_tactic_sources")] = lambda *_: False
    stage = bundle.stages("fp32")["camera"]
    with pytest.raises(EngineError, match="refuses tactic sources"):
        build_engine(trt, bundle.graph(stage), stage, BuildOptions(precision="fp32"))


def test_a_report_that_cannot_be_read_is_one_fault(trt: TensorRtDouble, bundle: Bundle) -> None:
    """What the engine computes in is then unknown, which is not another fault."""
    built_in(trt, "fp32")
    trt.answers[("EngineInspector", "get_engine_information")] = lambda *_: "no JSON"
    stage, log = bundle.stages("fp32")["camera"], BuildLog(faults=[])
    assert build_engine(trt, bundle.graph(stage), stage, BuildOptions(precision="fp32"), log=log).plan == b"host"
    assert log.faults is not None
    assert [fault.partition(":")[0] for fault in log.faults] == ["the engine inspector's report cannot be read"]


@pytest.mark.parametrize("trt", ["8.5.2.2", "8.6.1"], indirect=True)
def test_precisions_are_not_given_up_for_another_failure(trt: TensorRtDouble, bundle: Bundle) -> None:
    def fail(*_: Any) -> None:
        logger = trt.called("Builder", "__init__")[-1][0]
        logger.log(trt.ILogger.Severity.ERROR, "out of memory in tactic 7")

    built_in(trt, "fp32", "fp16")
    trt.answers[("Builder", "build_serialized_network")] = fail
    trt.answers[("IBuilderConfig", "get_flag")] = lambda *_: True
    stage, log = bundle.stages("fp32")["camera"], BuildLog(faults=[])
    with pytest.raises(EngineError, match="out of memory in tactic 7"):
        build_engine(trt, bundle.graph(stage), stage, BuildOptions(precision="fp16"), log=log)
    assert len(trt.called("Builder", "build_serialized_network")) == 1
    assert log.faults == []


def test_who_collects_faults_gets_an_engine_of_other_precisions(trt: TensorRtDouble, bundle: Bundle) -> None:
    """8.x refuses where a layer has no kernel of its precision: the check wants to see the rest of the engine run."""
    weak = version_of(trt) < (10, 0)
    orders: set[str] = set()

    def build(*_: Any) -> bytearray | None:
        logger, severity = trt.called("Builder", "__init__")[-1][0], trt.ILogger.Severity.ERROR
        logger.log(severity, "Could not find any implementation for node Gather_7")
        return None if not weak or "OBEY_PRECISION_CONSTRAINTS" in orders else bytearray(b"plan")

    built_in(trt, "fp32", "fp16")
    trt.answers |= {
        ("Builder", "build_serialized_network"): build,
        ("IBuilderConfig", "set_flag"): lambda _, flag: orders.add(flag.name),
        ("IBuilderConfig", "clear_flag"): lambda _, flag: orders.discard(flag.name),
        ("IBuilderConfig", "get_flag"): lambda _, flag: flag.name in orders,
    }
    stage, options = bundle.stages("fp32")["camera"], BuildOptions(precision="fp16")
    with pytest.raises(EngineError, match="implementation for node Gather_7"):
        build_engine(trt, bundle.graph(stage), stage, options)
    log = BuildLog(faults=[])
    if not weak:
        with pytest.raises(EngineError, match="implementation for node Gather_7"):
            build_engine(trt, bundle.graph(stage), stage, options, log=log)
        return
    assert build_engine(trt, bundle.graph(stage), stage, options, log=log).plan == b"plan"
    assert {"FP16", "PREFER_PRECISION_CONSTRAINTS"} <= orders
    assert [fault.partition(";")[0][-8:] for fault in log.faults or ()] == ["Gather_7"]


def test_messages_on_sparse_kernels_are_kept_though_they_are_verbose(trt: TensorRtDouble, bundle: Bundle) -> None:
    """TensorRT 10 and later count sparse kernels in the verbose log."""
    built_in(trt, "fp32", "fp16")

    def build(*_: Any) -> bytearray:
        logger, verbose = trt.called("Builder", "__init__")[-1][0], trt.ILogger.Severity.VERBOSE
        for text in ("Found 3 layer(s) eligible to use", "Chose 2 layer(s) using"):
            logger.log(verbose, f"(Sparsity) {text} sparse tactics")
        logger.log(verbose, "=============== Computing costs for conv1")
        return bytearray(b"plan")

    trt.answers[("Builder", "build_serialized_network")] = build
    stage, log = bundle.stages("fp32")["camera"], BuildLog()
    layers = build_engine(trt, bundle.graph(stage), stage, BuildOptions(precision="fp16"), log=log).layers
    assert (len(layers.sparse_eligible), len(layers.sparse_picked)) == (3, 2)
    assert len(log.messages) == 2


def test_the_numbers_of_the_contract_are_asked_of_the_engine(trt: TensorRtDouble, bundle: Bundle) -> None:
    """Also where the network does not show its quantisers: the contract says that there are some."""
    stage = dataclasses.replace(bundle.stages("fp32")["head"], numbers="fp8")
    options = BuildOptions(precision="int8")
    for found, good in (("fp8", True), ("int8", False), ("fp16", False)):
        built_in(trt, "fp32", found)
        if good:
            assert build_engine(trt, bundle.graph(stage), stage, options).layers.counts[found] == 1
            continue
        with pytest.raises(EngineError, match=r"head was asked for in fp8 but computes in"):
            build_engine(trt, bundle.graph(stage), stage, options)


def test_network_flags_by_name(trt: TensorRtDouble) -> None:
    wanted = {8: 1 << 0, 10: 1 << 1, 11: 1 << 0}[version_of(trt)[0]]
    assert network_flags(trt) == wanted


def test_static_stage_needs_no_profile(trt: TensorRtDouble, bundle: Bundle) -> None:
    built_in(trt, "fp32")
    stage = bundle.stages("fp32")["camera"]
    build_engine(trt, bundle.graph(stage), stage, BuildOptions(precision="fp32"))
    assert not trt.called("Builder", "create_optimization_profile")


@pytest.mark.parametrize(
    ("change", "since"),
    [
        ({"optimization_level": 3}, (8, 6)),
        ({"tactic_dram_mib": 64}, (8, 6)),
        ({"tactic_shared_kib": 48}, (10, 0)),
        ({"version_compatible": True}, (8, 6)),
        ({"hardware_compatible": "ampere_plus"}, (8, 6)),
        ({"hardware_compatible": "same_compute_capability"}, (10, 9)),
        ({"strip": True}, (10, 0)),
        ({"strip": True, "refit": True}, (10, 0)),
        ({"refit": True, "workspace_mib": 64}, (8, 5)),
    ],
)
def test_options_that_a_version_lacks_are_errors(
    trt: TensorRtDouble, bundle: Bundle, change: dict[str, Any], since: tuple[int, int]
) -> None:
    """The versions are those of the key matrix made from the released bindings."""
    built_in(trt, "fp32")
    stage = bundle.stages("fp32")["head"]
    options = BuildOptions(precision="fp32", builder=BuilderRecipe(**change))
    if version_of(trt) >= since:
        build_engine(trt, b"", stage, options)
        flags = {flag.name for (flag,) in trt.called("IBuilderConfig", "set_flag")}
        assert ("REFIT" in flags) == bool(change.get("refit"))
        assert ("REFIT_IDENTICAL" in flags) == (bool(change.get("strip")) and not change.get("refit"))
        assert bool({"STRIP_PLAN", "WEIGHTLESS"} & flags) == bool(change.get("strip"))
        return
    with pytest.raises(EngineError, match=rf"TensorRT {re.escape(trt.__version__)} has no") as caught:
        build_engine(trt, b"", stage, options)
    assert "leave the option out" in caught.value.remedy


def test_a_timing_cache_that_cannot_be_read_is_begun_anew(trt: TensorRtDouble, bundle: Bundle) -> None:
    built_in(trt, "fp32")
    answers = iter([None, trt.make("ITimingCache")])
    trt.answers[("IBuilderConfig", "create_timing_cache")] = lambda *_: next(answers)
    build_engine(
        trt, b"", bundle.stages("fp32")["head"], BuildOptions(precision="fp32"), timing_cache=b"of another GPU"
    )
    assert trt.called("IBuilderConfig", "create_timing_cache") == [(b"of another GPU",), (b"",)]


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


def test_key_changes_with_everything_an_engine_depends_on() -> None:
    other = dataclasses.replace(STAGE, axes={"N": AxisRange(min=1, opt=5, max=10)})
    base: dict[str, Any] = {"onnx_sha256": "a", "stage": STAGE, "options": BuildOptions(precision="fp16")}
    base |= {"tensorrt": "10.3.0", "device": "Orin"}
    changes = {"onnx_sha256": "b", "options": BuildOptions(precision="fp32"), "tensorrt": "10.4", "device": "Thor"}
    keys = {engine_key(**{**base, name: value}) for name, value in {**changes, "stage": other}.items()}
    assert len(keys | {engine_key(**base)}) == 6


def test_key_changes_with_the_code_that_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A plan of yesterday's builder must not pass for today's."""

    def key() -> str:
        tensorrt_builder.builder_revision.cache_clear()
        return engine_key("a", STAGE, BuildOptions(precision="fp16"), tensorrt="10.3.0", device="Orin")

    before = key()
    for path in DEPLOY.glob("tensorrt_*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(tensorrt_builder, "__file__", str(tmp_path / "tensorrt_builder.py"))
    assert key() == before
    with (tmp_path / "tensorrt_islands.py").open("a") as stream:
        stream.write("# another rule\n")
    assert key() != before
    monkeypatch.setattr("altermoma.__version__", "99")
    changed = key()
    monkeypatch.undo()
    assert len({before, changed, key()}) == 2


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
