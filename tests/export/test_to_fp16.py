"""Half precision where it is asked for, and truly fp32 in the islands."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from export_frames import exported
from export_graphs import graph, node, random

from altermoma.errors import ExportError, RecipeError
from altermoma.export.contract import StageContract, TensorSpec
from altermoma.export.graph import FLOAT, HALF, INT32, INT64, initializers, value_types
from altermoma.export.parity import open_session, run_session
from altermoma.export.passes.emulate_half import emulate_half
from altermoma.export.passes.to_fp16 import to_fp16


def stage(fp32_nodes: tuple[str, ...] = (), **flags: str) -> StageContract:
    """Contract of toy graphs: input x, output out; flags are island and/or between, per tensor."""

    def spec(name: str) -> TensorSpec:
        flag = flags.get(name, "")
        marks = {"island": flag == "island", "between": flag == "between"}
        return TensorSpec(name=name, dtype="float32", shape=(1,), meaning="", unit="", **marks)

    return StageContract(name="toy", meaning="", inputs=(spec("x"),), outputs=(spec("out"),), fp32_nodes=fp32_nodes)


def input_types(model: onnx.ModelProto, op: str, index: int = 0) -> list[int]:
    """Element type of one input of every node of a kind, in order."""
    types = {name: tensor.elem_type for name, tensor in value_types(model).items()}
    types |= {name: item.data_type for name, item in initializers(model).items()}
    return [types[item.input[index]] for item in model.graph.node if item.op_type == op]


def two_layers(scale: float = 1.0) -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x w1", "a"), node("Add", "a b1", "b"), node("Relu", "b", "c"),
        node("MatMul", "c w2", "d"), node("Relu", "d", "e"), node("MatMul", "e w3", "out"),
    ]  # fmt: skip
    weights = {"w1": random(4, 8) * scale, "b1": random(8), "w2": random(8, 8), "w3": random(8, 3)}
    return graph(nodes, {"x": ("f", ["N", 4])}, {"out": ("f", None)}, weights)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({}, [HALF, HALF, HALF]),
        ({"x": "island"}, [FLOAT, HALF, HALF]),
        ({"out": "island"}, [HALF, HALF, FLOAT]),
        ({"x": "between", "out": "between"}, [HALF, HALF, HALF]),
    ],
)
def test_islands_reach_to_the_nearest_product(flags: dict[str, str], wanted: list[int]) -> None:
    half = to_fp16(two_layers(), stage(**flags))
    onnx.checker.check_model(half, full_check=True)
    assert input_types(half, "MatMul") == wanted
    assert input_types(half, "MatMul", 1) == wanted
    public = HALF if flags.get("out") == "between" else FLOAT
    assert half.graph.output[0].type.tensor_type.elem_type == public
    x = random(6, 4, seed=2)
    found = run_session(open_session(half), {"x": x})["out"]
    exact = run_session(open_session(two_layers()), {"x": x})["out"]
    assert found.dtype == (np.float16 if public == HALF else np.float32)
    np.testing.assert_allclose(found, exact, atol=0.02 * np.abs(exact).max())


def test_bias_belongs_to_its_product() -> None:
    half = to_fp16(two_layers(), stage(x="island"))
    assert input_types(half, "Add", 1) == [FLOAT]


def test_named_nodes_compute_in_fp32() -> None:
    half = to_fp16(two_layers(), stage(fp32_nodes=("MatMul_3",)))
    assert input_types(half, "MatMul") == [HALF, FLOAT, HALF]
    with pytest.raises(RecipeError, match="no_such_layer"):
        to_fp16(two_layers(), stage(fp32_nodes=("no_such_layer",)))


def test_metric_coordinates_keep_centimetres() -> None:
    """30 m and 30.006 m are one number in half precision; the island tells them apart."""
    nodes = [node("MatMul", "x w1", "a"), node("Add", "a b1", "out")]
    weights = {"w1": np.full((4, 8), 16, np.float32), "b1": np.full(8, -16 * 30, np.float32)}
    model = graph(nodes, {"x": ("f", ["N", 4])}, {"out": ("f", None)}, weights)
    x = np.asarray([[30.0, 0, 0, 0], [30.006, 0, 0, 0]], np.float32)
    blurred = run_session(open_session(emulate_half(to_fp16(model, stage(out="between")))), {"x": x})["out"]
    sharp = run_session(open_session(emulate_half(to_fp16(model, stage(x="island", out="between")))), {"x": x})["out"]
    assert blurred[0, 0] == blurred[1, 0]
    assert sharp[1, 0] - sharp[0, 0] == pytest.approx(0.096, rel=0.01)


def test_emulated_rounding_is_that_of_numpy() -> None:
    model = two_layers()
    w1, b1, w2, w3 = (onnx.numpy_helper.to_array(item).astype(np.float16) for item in model.graph.initializer)
    x = random(6, 4, seed=2)

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16)

    hidden = np.maximum(product(x.astype(np.float16), w1) + b1, 0)
    wanted = product(np.maximum(product(hidden, w2), 0), w3)
    for flags in ({}, {"x": "between"}, {"out": "between"}):
        emulated = emulate_half(to_fp16(model, stage(**flags)))
        onnx.checker.check_model(emulated, full_check=True)
        found = run_session(open_session(emulated), {"x": x})["out"]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
        assert found.dtype == (np.float16 if flags.get("out") else np.float32)


@pytest.mark.parametrize("value", [1e5, np.nan])
def test_weights_out_of_range(value: float) -> None:
    model = two_layers()
    weight = random(8, 8)
    weight[0, 0] = value
    next(t for t in model.graph.initializer if t.name == "w2").CopyFrom(onnx.numpy_helper.from_array(weight, "w2"))
    with pytest.raises(ExportError, match=r"weight w2 of MatMul_3"):
        to_fp16(model, stage())
    assert input_types(to_fp16(model, stage(fp32_nodes=("MatMul_3",))), "MatMul", 1) == [HALF, FLOAT, HALF]


def test_infinite_masks_pass() -> None:
    model = graph(
        [node("Add", "x mask", "out")], {"x": ("f", [2])}, {"out": ("f", None)}, {"mask": np.float32([0, -np.inf])}
    )
    found = run_session(open_session(to_fp16(model, stage())), {"x": np.ones(2, np.float32)})["out"]
    np.testing.assert_array_equal(found, [1, -np.inf])


def test_subgraphs_are_refused() -> None:
    branch = onnx.helper.make_graph([node("Relu", "x", "y")], "b", [], [onnx.ValueInfoProto(name="y")])
    choice = node("If", "yes", "out", then_branch=branch, else_branch=branch)
    nodes = [node("Cast", "flag", "yes", to=onnx.TensorProto.BOOL), choice]
    model = graph(nodes, {"x": ("f", [2]), "flag": ("i", [])}, {"out": ("f", [2])})
    with pytest.raises(ExportError, match="subgraph"):
        to_fp16(model, stage())


def test_float_scales_of_a_resize_stay_float() -> None:
    nodes = [node("Relu", "x", "a"), node("Resize", "a - scales", "out", mode="linear")]
    weights = {"scales": np.asarray([1, 1, 2, 2], np.float32)}
    half = to_fp16(graph(nodes, {"x": ("f", [1, 2, 3, 3])}, {"out": ("f", None)}, weights), stage())
    onnx.checker.check_model(half, full_check=True)
    assert input_types(half, "Resize", 2) == [FLOAT]
    assert input_types(half, "Resize", 0) == [HALF]


def test_an_output_that_is_read_on_and_an_input_that_is_handed_on() -> None:
    nodes = [node("Relu", "x", "out"), node("MatMul", "out w", "other")]
    contract = stage(out="between")
    other = dataclasses.replace(contract.outputs[0], name="other", between=False)
    contract = dataclasses.replace(contract, outputs=(*contract.outputs, other))
    model = graph(nodes, {"x": ("f", [2, 2])}, {"out": ("f", None), "other": ("f", None)}, {"w": random(2, 2)})
    half = to_fp16(model, contract)
    onnx.checker.check_model(half, full_check=True)
    found = run_session(open_session(half), {"x": np.eye(2, dtype=np.float32)})
    assert (found["out"].dtype, found["other"].dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(found["other"], random(2, 2), atol=2e-3)


# The exported model


def test_voxel_coordinates_meet_fp32_weights() -> None:
    lidar = exported("fp16").stages["lidar"]
    kinds = input_types(lidar, "MatMul")
    # One product per segment of the rows.
    assert set(kinds[:4]) == {FLOAT}
    assert set(kinds[4:]) == {HALF}
    # The sixteen-fold larger gathered rows of the next layer are half: the cast comes before the gather.
    assert input_types(lidar, "Gather")[:5] == [FLOAT] * 4 + [HALF]


def test_metres_of_depth_meet_fp32_weights() -> None:
    camera = exported("fp16").stages["camera"]
    kinds = input_types(camera, "Conv")
    convolutions = [item for item in camera.graph.node if item.op_type == "Conv"]
    full = [item for item, kind in zip(convolutions, kinds, strict=True) if kind == FLOAT]
    assert [item.input[0] for item in full] == ["depth"]
    assert len(convolutions) > 20


@pytest.mark.parametrize("version", ["8.5.2", "10.3.0"])
def test_fp32_islands_of_the_head(version: str) -> None:
    head = exported("fp16", version).stages["head"]
    for operator in ("LayerNormalization", "Softmax", "TopK", "Sigmoid", "Equal", "MaxPool", "Sqrt", "ReduceMean"):
        assert set(input_types(head, operator)) <= {FLOAT}, operator
    assert input_types(head, "TopK") == [FLOAT]
    assert len(input_types(head, "Softmax")) == 2
    makers = {name: item for item in head.graph.node for name in item.output}
    types = {name: tensor.elem_type for name, tensor in value_types(head).items()}
    types |= {name: item.data_type for name, item in initializers(head).items()}
    for name in ("center", "height", "dim", "rot", "vel", "heatmap"):
        last = makers[name]
        while last.op_type != "Conv":
            assert last.op_type in ("Add", "Transpose")
            last = next(makers[i] for i in last.input if i in makers and makers[i].op_type in ("Conv", "Add"))
        assert [types[i] for i in last.input] == [FLOAT] * 3, name
    position = [i for i in head.graph.node if "posembed" in i.name and i.op_type == "Conv"]
    assert position
    assert all(types[i] == FLOAT for item in position for i in item.input)
    products = input_types(head, "MatMul")
    assert products.count(HALF) == len(products) > 10


def test_tables_stay_whole_numbers() -> None:
    for name in ("view", "lidar"):
        model = exported("fp16").stages[name]
        assert set(input_types(model, "Gather", 1)) == {INT32}
        assert not {item.data_type for item in model.graph.initializer} - {FLOAT, HALF, INT64}


def test_no_cast_undoes_a_cast() -> None:
    for model in exported("fp16").stages.values():
        makers = {name: item for item in model.graph.node for name in item.output}
        for item in model.graph.node:
            if item.op_type == "Cast" and item.input[0] in makers:
                assert makers[item.input[0]].op_type != "Cast", item.name
