"""Every shipped target against the graphs of the shipped preset, and graphs of others' making against targets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_frames import exported
from export_graphs import Arrays, graph, node
from onnx import TensorProto, helper, numpy_helper
from test_lint import CASES, MEAN_18, one, sampling, scatter

from altermoma.cli.app import app
from altermoma.deploy.targets import load_target, target_names
from altermoma.errors import AltermomaError, ExportError, RecipeError
from altermoma.export.lint import lint
from altermoma.export.lint_tables import DLA_OPERATORS, IRREGULAR, parse_version, supported_operators
from altermoma.export.lint_target import lint_for, read_graph

ORIN_8 = ("orin-jp51", "orin-jp60", "drive-os6")


@pytest.mark.parametrize("name", target_names())
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_real_model_suits_every_target(name: str, precision: str) -> None:
    """As `altermoma-export --target` does it: exported for that target's version, checked for the whole target."""
    target = load_target(name)
    old = parse_version(target.tensorrt) < (8, 6)
    for stage, model in exported(precision, "8.5.2" if old else "10.3.0").stages.items():  # type: ignore[arg-type]
        assert lint_for(model, target.tensorrt, precisions=target.precisions, stage=stage) == []


@pytest.mark.parametrize("name", target_names())
@pytest.mark.parametrize(
    ("model", "rule", "breaks"),
    [
        (MEAN_18, "reduce-axes", ORIN_8),
        (MEAN_18, "opset-too-new", ORIN_8),
        (scatter("ScatterElements", "add"), "scatter-reduction", ORIN_8),
        (one("Identity", {"x": ("l", [1])}), "int64-binding", ORIN_8),
        (sampling("linear", 20), "grid-sample-mode", None),
        (one("Unique", {"x": ("f", [9])}), "irregular", None),
    ],
)
def test_targets_break_where_their_version_does(
    name: str, model: onnx.ModelProto, rule: str, breaks: tuple[str, ...] | None
) -> None:
    target = load_target(name)
    rules = {f.rule for f in lint_for(model, target.tensorrt, precisions=target.precisions)}
    old = target.tensorrt_version < (10,)
    assert (rule in rules) == (breaks is None or old)
    assert breaks is None or (name in breaks) <= old


def test_every_finding_names_a_node_and_a_remedy() -> None:
    """Graph-wide ones (operator set, foreign domain) name no node; all others do, also where nodes have no names."""
    for model, _, _ in CASES:
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        for item in bare.graph.node:
            item.ClearField("name")
        for version in ("8.5.2", "8.6.1", "10.0.1", "10.3.0", "11.1"):
            for finding in lint(bare, version):
                assert finding.remedy
                assert finding.message
                assert finding.node or finding.rule in {"opset-too-new", "foreign-domain"}, finding
            assert [f.rule for f in lint(bare, version)] == [f.rule for f in lint(model, version)]


@pytest.mark.parametrize("op", sorted(IRREGULAR))
def test_control_flow_and_results_of_unknown_size_have_no_place(op: str) -> None:
    """Loop, If, NonZero and the like, on every target, by name and with what to do instead."""
    item = helper.make_node(op, ["x"], ["out"], name=f"model/{op}")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "out")]
    model = helper.make_model(
        helper.make_graph([item], "toy", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    for name in target_names():
        (found,) = [f for f in lint(model, load_target(name).tensorrt) if f.rule == "irregular"]
        assert (found.node, found.severity) == (f"model/{op}", "error")
        assert found.remedy == IRREGULAR[op]


def float8_pair() -> onnx.ModelProto:
    """Weights in FP8 behind a DequantizeLinear, as exporters of the vendor write them."""
    weight = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [2, 2], [1.0, 2.0, 3.0, 4.0])
    scale = numpy_helper.from_array(np.asarray(0.5, np.float32), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wide"], name="dequantise"),
        helper.make_node("MatMul", ["x", "wide"], ["out"], name="product"),
    ]
    x, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("x", "out"))
    made = helper.make_graph(nodes, "fp8", [x], [out], [weight, scale])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def quantised_weights() -> onnx.ModelProto:
    weights: Arrays = {
        "w": np.ones((2, 2), np.int8),
        "s": np.asarray(0.1, np.float32),
        "z": np.asarray(0, np.int8),
    }
    nodes = [node("DequantizeLinear", "w s z", "wide"), node("MatMul", "x wide", "out")]
    return graph(nodes, {"x": ("f", [1, 2])}, {"out": ("f", None)}, weights)


def test_weights_in_constant_nodes_are_weights() -> None:
    """Other exporters write Constant nodes, which have no inputs, where ours writes initialisers."""
    arrays = {"w": np.ones((64, 32, 3, 3), np.int8), "s": np.asarray(0.1, np.float32), "z": np.asarray(0, np.int8)}
    nodes = [
        *(helper.make_node("Constant", [], [n], value=numpy_helper.from_array(a)) for n, a in arrays.items()),
        node("DequantizeLinear", "w s z", "wide"),
        node("QuantizeLinear", "x s z", "x8"),
        node("DequantizeLinear", "x8 s z", "xf"),
        node("Conv", "xf wide", "out"),
        node("Relu", "wide", "positive"),
    ]
    model = graph(nodes, {"x": ("f", [1, 32, 8, 8])}, {"out": ("f", None), "positive": ("f", None)})
    assert not [f for f in lint(model, "10.3") if f.severity == "error"]


def test_precisions_that_a_target_lacks() -> None:
    for name in target_names():
        target = load_target(name)
        rules = {f.rule: f for f in lint_for(float8_pair(), target.tensorrt, precisions=target.precisions)}
        assert ("precision" in rules) == ("fp8" not in target.precisions), name
        if "precision" in rules:
            assert rules["precision"].node == "dequantise"
            assert "fp8" in rules["precision"].message
        int8 = {f.rule for f in lint_for(quantised_weights(), target.tensorrt, precisions=target.precisions)}
        assert "precision" not in int8
    found = lint_for(quantised_weights(), "10.3.0", precisions=("fp32", "fp16"))
    assert {f.rule for f in found} == {"precision", "half-quantised"}
    found = [f for f in found if f.rule == "precision"]
    assert [(f.rule, f.node, f.remedy) for f in found] == [("precision", "DequantizeLinear_0", "export in fp32, fp16")]


def test_what_the_accelerator_lacks_is_a_warning_each() -> None:
    assert supported_operators((8, 5)) >= DLA_OPERATORS
    for stage, native in (("camera", True), ("lidar", False)):
        found = lint_for(exported("fp16").stages[stage], "8.6.2", precisions=("fp32", "fp16"), stage=stage, dla=True)
        lacking = [f for f in found if f.rule == "dla-operator"]
        assert {f.severity for f in lacking} == {"warning"}
        assert all(f.node for f in lacking)
        gathers = [f for f in lacking if f.message.startswith("Gather")]
        assert bool(gathers) == (not native)


@pytest.mark.parametrize(
    ("change", "target", "said"),
    [
        ({"strip": True}, "orin-jp60", "builder.strip needs TensorRT 10.0"),
        ({"tactic_dram_mib": 4}, "orin-jp51", "builder.tactic_dram_mib needs TensorRT 8.6"),
        ({"dla_stages": ("camera",)}, "thor-jp70", "DLA core 0, of 0"),
        ({"dla_stages": ("camera",), "dla_core": 2}, "orin-jp62", "DLA core 2, of 2"),
        ({"version_compatible": True}, "drive-os6", "not supported on DRIVE"),
        ({"hardware_compatible": "same_compute_capability"}, "orin-jp62", "10.9"),
        ({"dla_stages": ("camera",), "optimization_level": 3}, "orin-jp62", ""),
    ],
)
def test_builder_options_that_a_target_cannot_honour(change: dict[str, object], target: str, said: str) -> None:
    from altermoma.recipe import BuilderRecipe

    builder = BuilderRecipe(**change)  # type: ignore[arg-type]
    if not said:
        load_target(target).require_builder(builder)
        return
    with pytest.raises(RecipeError, match=said):
        load_target(target).require_builder(builder)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.onnx"
    onnx.save(MEAN_18, path)
    return path


def test_command_line(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> None:
        app(["lint", *map(str, arguments)], standalone_mode=False)

    with pytest.raises(ExportError, match="theirs: ReduceMean_0: ReduceMean with axes as an input") as caught:
        run(broken, "--target", "orin-jp60")
    assert caught.value.exit_code == 1
    run(broken, "--target", "orin-jp62")
    assert "1 of 1 graphs suit orin-jp62, TensorRT 10.3.0" in capsys.readouterr().out
    with pytest.raises(ExportError, match=r"TensorRT 8\.5"):
        run(broken, "--target", "orin-jp62", "--tensorrt", "8.5")
    onnx.save(exported("fp16").stages["lidar"], tmp_path / "lidar.onnx")
    run(tmp_path / "lidar.onnx", "--target", "orin-jp60", "--dla")
    assert "is not native to the DLA" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="has no DLA"):
        run(broken, "--target", "thor-jp72", "--dla")


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model at all, only words")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("text.onnx", "empty.onnx", "absent.onnx"):
        with pytest.raises(AltermomaError, match=name):
            read_graph(tmp_path / name)
    onnx.save(one("Relu", {"x": ("f", [2])}), tmp_path / "whole.onnx")
    whole = (tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AltermomaError, match=r"half\.onnx"):
        read_graph(tmp_path / "half.onnx")


def test_linting_needs_no_torch(broken: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
sys.argv = ["altermoma", "lint", {str(broken)!r}, "--target", "orin-jp62"]
from altermoma.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
