"""Windows are cut, rolled and put together as int8 numbers; what is computed does not change by a bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from export_graphs import graph, node, random
from test_placement import contract, run

from altermoma.calib.insert import ONNX_RUNTIME, insert
from altermoma.calib.int8 import StagePlan, quantised
from altermoma.calib.moves import move_as_int8
from altermoma.calib.placement import needed, place
from altermoma.calib.pointwise import rows_as_convolutions
from altermoma.calib.products import find_products
from altermoma.calib.scales import Range
from altermoma.calib.segments import prepare
from altermoma.export.graph import value_types

MOVED = ("Pad", "Slice", "Split", "Concat", "Transpose", "Reshape")
WHOLE = ("QuantizeLinear", "QLinearConv", "QLinearConcat")
STEP = {"step": np.float32(0.1), "zero": np.uint8(128)}


def window() -> onnx.ModelProto:
    """x + unrolled attention of x padded and rolled, as Swin's shifted windows: one window, one head."""
    nodes = [
        node("Pad", "x pads", "padded"),
        node("Slice", "padded two far rows_axis", "below"),
        node("Slice", "padded none two rows_axis", "above"),
        node("Concat", "below above", "rolled", axis=0),
        node("MatMul", "rolled w0", "m0"),
        node("Add", "m0 b0", "qkv"),
        node("Split", "qkv", "q k v", axis=1),
        node("Transpose", "k", "kt", perm=[1, 0]),
        node("MatMul", "q kt", "alike"),
        node("Softmax", "alike", "weights", axis=1),
        node("MatMul", "weights v", "mixed"),
        node("MatMul", "mixed w1", "m1"),
        node("Add", "m1 b1", "s1"),
        node("Slice", "s1 minus far rows_axis", "last"),
        node("Slice", "s1 none minus rows_axis", "first"),
        node("Concat", "last first", "back", axis=0),
        node("Slice", "back none seven rows_axis", "inner"),
        node("Add", "x inner", "y"),
    ]
    weights = {
        "w0": random(16, 48, seed=1) / 4,
        "b0": random(48, seed=2),
        "w1": random(16, 16, seed=3) / 4,
        "b1": random(16, seed=4),
        "pads": np.array([0, 0, 2, 0]),
        **{name: np.array([n]) for name, n in (("none", 0), ("two", 2), ("minus", -2), ("seven", 7), ("far", 99))},
        "rows_axis": np.array([0]),
    }
    return graph(nodes, {"x": ("f", [7, 16])}, {"y": ("f", [7, 16])}, weights)


@pytest.fixture(scope="module")
def before_after() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = prepare(window())
    products = tuple(find_products(model, contract()))
    placement = place(model, products, results=True)
    ranges = {name: Range(low=-4.0, high=5.0) for name in needed([placement])}
    plan = StagePlan(contract=contract(), graph=model, products=products)
    before = insert(model, products, placement, ranges, ONNX_RUNTIME)
    rows_as_convolutions(before, plan.shapes)
    return before, quantised(plan, frozenset(plan.groups), ranges)


def test_the_numbers_are_the_same_bit_by_bit(before_after: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    data = 2 * random(7, 16, seed=7)
    before, after = (run(model, {"x": data})["y"] for model in before_after)
    onnx.checker.check_model(before_after[1], full_check=True)
    assert np.ptp(before - data) > 1
    np.testing.assert_array_equal(after, before)


def test_everything_that_only_moves_numbers_moves_int8(
    before_after: tuple[onnx.ModelProto, onnx.ModelProto], tmp_path: Path
) -> None:
    floats = [moved_as_floats(model, tmp_path / "optimised.onnx") for model in before_after]
    assert {"Pad", "Split", "Concat"} <= floats[0]
    assert not floats[1]


def moved_as_floats(model: onnx.ModelProto, path: Path) -> set[str]:
    """Kinds of moves that read floats in what ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = onnx.load(path).graph.node
    whole = {name for item in found if item.op_type in WHOLE for name in item.output}
    for item in found:
        if item.op_type in MOVED and item.input[0] in whole:
            whole.update(item.output)
    return {item.op_type for item in found if item.op_type in MOVED and item.input[0] not in whole}


@pytest.mark.parametrize(("value", "mode"), [(1.0, "constant"), (0.0, "edge")])
def test_a_padding_that_is_no_zero_stays_before_its_quantiser(value: float, mode: str) -> None:
    nodes = [
        node("Pad", "x pads value", "p", mode=mode),
        node("QuantizeLinear", "p step zero", "p8"),
        node("DequantizeLinear", "p8 step zero", "y"),
    ]
    weights = {"pads": np.array([0, 1]), "value": np.float32(value), **STEP}
    model = graph(nodes, {"x": ("f", [4])}, {"y": ("f", None)}, weights)
    before = model.SerializeToString(deterministic=True)
    move_as_int8(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_padding_of_some_axes_pads_those() -> None:
    """Axes are an input of their own from opset 18 on."""
    nodes = [
        node("Pad", "x pads none rows_axis", "p"),
        node("QuantizeLinear", "p step zero", "p8"),
        node("DequantizeLinear", "p8 step zero", "y"),
    ]
    weights = {"pads": np.array([1, 2]), "none": np.float32(0), "rows_axis": np.array([0]), **STEP}
    model = graph(nodes, {"x": ("f", [4, 3])}, {"y": ("f", None)}, weights, opset=18)
    feeds = {"x": random(4, 3, seed=1)}
    before = run(model, feeds)["y"]
    move_as_int8(model)
    assert [item.op_type for item in model.graph.node] == ["QuantizeLinear", "Pad", "DequantizeLinear"]
    np.testing.assert_array_equal(run(model, feeds)["y"], before)


@pytest.mark.parametrize("scale", ["steps zeros", "step"])
def test_a_padding_before_another_quantiser_stays(scale: str) -> None:
    """One with a scale per row, or with no zero point that could be padded with."""
    nodes = [
        node("Pad", "x pads", "p"),
        node("QuantizeLinear", f"p {scale}", "p8", axis=0),
        node("DequantizeLinear", f"p8 {scale}", "y", axis=0),
    ]
    many = {"steps": np.full(7, 0.1, np.float32), "zeros": np.zeros(7, np.uint8)}
    weights = {"pads": np.array([1, 0, 2, 0]), **(many if scale != "step" else {"step": STEP["step"]})}
    model = graph(nodes, {"x": ("f", [4, 3])}, {"y": ("f", None)}, weights)
    move_as_int8(model)
    assert [item.op_type for item in model.graph.node] == ["Pad", "QuantizeLinear", "DequantizeLinear"]


def test_numbers_of_a_scale_per_column_are_moved_as_floats() -> None:
    """Behind a transpose the scales would lie along another axis."""
    nodes = [
        node("DequantizeLinear", "q steps zeros", "w", axis=1),
        node("Transpose", "w", "t", perm=[1, 0]),
        node("MatMul", "x t", "y"),
    ]
    weights = {
        "q": np.arange(16, dtype=np.int8).reshape(4, 4),
        "steps": np.array([0.1, 0.2, 0.4, 0.8], np.float32),
        "zeros": np.zeros(4, np.int8),
    }
    model = graph(nodes, {"x": ("f", [2, 4])}, {"y": ("f", None)}, weights)
    feeds = {"x": random(2, 4, seed=1)}
    before = run(model, feeds)["y"]
    move_as_int8(model)
    np.testing.assert_array_equal(run(model, feeds)["y"], before)


def test_numbers_that_are_rounded_again_keep_their_pairs() -> None:
    """Between a dequantiser and a quantiser ONNX Runtime moves int8 numbers by itself, if it finds both."""
    nodes = [
        node("QuantizeLinear", "x step zero", "x8"),
        node("DequantizeLinear", "x8 step zero", "xf"),
        node("Transpose", "xf", "t", perm=[1, 0]),
        node("QuantizeLinear", "t step zero", "t8"),
        node("DequantizeLinear", "t8 step zero", "y"),
    ]
    model = graph(nodes, {"x": ("f", [4, 6])}, {"y": ("f", None)}, dict(STEP))
    before = model.SerializeToString(deterministic=True)
    move_as_int8(model)
    assert model.SerializeToString(deterministic=True) == before


def test_numbers_of_two_scales_are_joined_as_floats() -> None:
    nodes = [
        node("QuantizeLinear", "x step zero", "x8"),
        node("DequantizeLinear", "x8 step zero", "xf"),
        node("QuantizeLinear", "z wide zero", "z8"),
        node("DequantizeLinear", "z8 wide zero", "zf"),
        node("Concat", "xf zf", "c", axis=0),
        node("Exp", "c", "y"),
    ]
    weights = {"wide": np.float32(0.3), **STEP}
    model = graph(nodes, {"x": ("f", [4]), "z": ("f", [4])}, {"y": ("f", None)}, weights)
    feeds = {"x": random(4, seed=1), "z": random(4, seed=2)}
    before = run(model, feeds)["y"]
    move_as_int8(model)
    np.testing.assert_array_equal(run(model, feeds)["y"], before)
    joint = next(item for item in model.graph.node if item.op_type == "Concat")
    assert value_types(model)[joint.input[0]].elem_type == onnx.TensorProto.FLOAT
