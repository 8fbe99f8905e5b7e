"""Quantisers in hand-made graphs: where they sit, and that the graphs compute what int8 arithmetic would."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from export_graphs import Arrays, graph, node, random

from altermoma.calib.insert import ONNX_RUNTIME, Dialect, insert, tensorrt_dialect
from altermoma.calib.placement import needed, place
from altermoma.calib.products import find_products
from altermoma.calib.scales import Range
from altermoma.calib.segments import prepare
from altermoma.errors import ExportError
from altermoma.export.contract import StageContract, TensorSpec
from altermoma.export.lint import lint

DIALECTS = {"onnxruntime": ONNX_RUNTIME, "8.6": tensorrt_dialect((8, 6)), "10.3": tensorrt_dialect((10, 3))}


def contract(island: bool = False) -> StageContract:
    spec = TensorSpec(name="x", dtype="float32", shape=(1,), meaning="", unit="", island=island)
    return StageContract(name="toy", meaning="", inputs=(spec,), outputs=())


def residual_block() -> onnx.ModelProto:
    """ReLU(conv(ReLU(conv(x))) + x), then a convolution of it beside a resized one, joined."""
    nodes = [
        node("Conv", "x w1 b1", "c1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Add", "c2 x", "sum"),
        node("Relu", "sum", "r2"),
        node("Conv", "r2 w3 b3", "c3", kernel_shape=[1, 1], strides=[2, 2]),
        node("Relu", "c3", "r3"),
        node("Resize", "r3 - scales", "big", mode="nearest"),
        node("Concat", "r2 big", "joined", axis=1),
        node("Conv", "joined w4 b4", "c4", kernel_shape=[1, 1]),
        node("Relu", "c4", "out"),
    ]
    weights: Arrays = {
        "w1": random(16, 16, 3, 3, seed=1) / 10,
        "w2": random(16, 16, 3, 3, seed=2) / 10,
        "w3": random(16, 16, 1, 1, seed=3) / 4,
        "w4": random(8, 32, 1, 1, seed=4) / 4,
        **{f"b{i}": random(16 if i < 4 else 8, seed=10 + i) for i in range(1, 5)},
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    return graph(nodes, {"x": ("f", [1, 16, 8, 8])}, {"out": ("f", None)}, weights)


def sparse_layer() -> onnx.ModelProto:
    """Two submanifold layers of two segments each with a shortcut, and one after them: gathers and products."""
    nodes: list[onnx.NodeProto] = []

    def layer(rows: str, index: int, shortcut: str = "") -> str:
        nodes.append(node("Concat", f"{rows} zero", f"p{index}", axis=0))
        for part in ("a", "b"):
            nodes.append(node("Gather", f"p{index} table_{part}", f"g{index}{part}"))
            nodes.append(node("Reshape", f"g{index}{part} flat", f"f{index}{part}"))
            nodes.append(node("MatMul", f"f{index}{part} w{index}", f"m{index}{part}"))
        nodes.append(node("Concat", f"m{index}a m{index}b", f"j{index}", axis=0))
        nodes.append(node("Add", f"j{index} b{index}", f"s{index}"))
        last = f"s{index}"
        if shortcut:
            nodes.append(node("Add", f"{last} {shortcut}", f"t{index}"))
            last = f"t{index}"
        nodes.append(node("Relu", last, f"r{index}"))
        return f"r{index}"

    first = layer("x", 0)
    second = layer(first, 1)
    layer(second, 2, first)
    layer("r2", 3)
    weights: Arrays = {
        "zero": np.zeros((1, 8), np.float32),
        "flat": np.array([0, 24], np.int64),
        **{f"w{i}": random(24, 8, seed=i) / 4 for i in range(4)},
        **{f"b{i}": random(8, seed=9 + i) / 4 for i in range(4)},
    }
    inputs = {"x": ("f", ["N", 8]), "table_a": ("i", ["A", 3]), "table_b": ("i", ["B", 3])}
    return graph(nodes, inputs, {"r3": ("f", None)}, weights)  # type: ignore[arg-type]


def feeds(kind: str) -> Arrays:
    if kind == "residual":
        return {"x": random(1, 16, 8, 8, seed=7)}
    rng = np.random.default_rng(5)
    tables = {f"table_{part}": rng.integers(0, 13, (6, 3)).astype(np.int32) for part in "ab"}
    return {"x": random(12, 8, seed=7), **tables}


GRAPHS = {"residual": residual_block, "sparse": sparse_layer}


def run(model: onnx.ModelProto, inputs: Arrays, outputs: list[str] | None = None) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = outputs or [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def quantised(kind: str, dialect: Dialect) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The prepared graph and the graph with its pairs; ranges are the extremes on `feeds`."""
    model = prepare(GRAPHS[kind]())
    products = find_products(model, contract())
    placement = place(model, products, results=dialect.results)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = sorted(needed([placement]))
    public = {item.name for item in (*model.graph.input, *model.graph.output)}
    for name in set(names) - public:
        watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    seen = feeds(kind) | run(watched, feeds(kind))
    ranges = {n: Range(low=min(0.0, float(seen[n].min())), high=max(0.0, float(seen[n].max()))) for n in names}
    return model, insert(model, products, placement, ranges, dialect)


@pytest.mark.parametrize("kind", list(GRAPHS))
def test_bias_and_relu_move_into_the_segments_without_changing_the_result(kind: str) -> None:
    model = GRAPHS[kind]()
    prepared = prepare(model)
    expected, found = (run(item, feeds(kind)) for item in (model, prepared))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)
    kinds = Counter(item.op_type for item in prepared.graph.node)
    if kind == "sparse":
        assert (kinds["Gemm"], kinds["MatMul"], kinds["Add"]) == (8, 0, 1)


@pytest.mark.parametrize("kind", list(GRAPHS))
@pytest.mark.parametrize("name", list(DIALECTS))
def test_rounding_loses_little(kind: str, name: str) -> None:
    model, found = quantised(kind, DIALECTS[name])
    onnx.checker.check_model(found, full_check=True)
    (expected,), (got,) = (run(item, feeds(kind)).values() for item in (model, found))
    noise = float(((got - expected) ** 2).sum() / (expected**2).sum())
    assert 1e-8 < noise < 1e-3


@pytest.mark.parametrize("kind", list(GRAPHS))
@pytest.mark.parametrize("version", ["8.6", "10.3"])
def test_tensorrt_gets_what_its_rules_ask_for(kind: str, version: str) -> None:
    _, found = quantised(kind, DIALECTS[version])
    assert lint(found, version) == []
    makers = {name: item for item in found.graph.node for name in item.output}
    for item in found.graph.node:
        if item.op_type in ("Conv", "Gemm"):
            assert [makers[name].op_type for name in item.input[:2]] == ["DequantizeLinear"] * 2
            readers = {r.op_type for r in found.graph.node if item.output[0] in r.input}
            assert "QuantizeLinear" not in readers  # nothing between a product, its bias and its ReLU
    zero_points = [i for i in found.graph.initializer if i.name.endswith("zero_point")]
    assert zero_points
    assert all(i.data_type == onnx.TensorProto.INT8 and not onnx.numpy_helper.to_array(i).any() for i in zero_points)


def test_the_shortcut_is_int8_and_the_product_takes_it_in() -> None:
    _, found = quantised("residual", DIALECTS["10.3"])
    makers = {name: item.op_type for item in found.graph.node for name in item.output}
    (add,) = (item for item in found.graph.node if item.op_type == "Add")
    assert [makers.get(name) for name in add.input] == ["Conv", "DequantizeLinear"]


def test_onnxruntime_computes_everything_in_int8() -> None:
    """Its optimiser must find an int8 kernel for every product, sum, join and gather."""
    for kind, expected in (
        ("residual", {"QLinearConv": 4, "QLinearAdd": 1, "Conv": 0, "Add": 0, "Relu": 0}),
        ("sparse", {"QGemm": 8, "QLinearAdd": 1, "Gemm": 0, "MatMul": 0, "Add": 0}),
    ):
        _, found = quantised(kind, ONNX_RUNTIME)
        kinds = optimised(found)
        assert {name: kinds[name] for name in expected} == expected
        # One pair at the entry and one at the exit; all between is int8.
        assert kinds["QuantizeLinear"] <= 2
        assert kinds["DequantizeLinear"] <= 2


def optimised(model: onnx.ModelProto) -> Counter[str]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(item.op_type for item in onnx.load(options.optimized_model_filepath).graph.node)


def test_rows_are_rounded_before_they_are_gathered() -> None:
    """TensorRT from 10 on has no int8 gather: a pair before it and one of the same scale behind it."""
    _, found = quantised("sparse", DIALECTS["10.3"])
    makers = {name: item for item in found.graph.node for name in item.output}
    pairs = {item.input[0]: item for item in found.graph.node if item.op_type == "QuantizeLinear"}
    for item in found.graph.node:
        if item.op_type == "Gather":
            before = makers[item.input[0]]
            assert before.op_type == "DequantizeLinear"
            (reshaped,) = (r.output[0] for r in found.graph.node if item.output[0] in r.input)
            assert pairs[reshaped].input[1] == before.input[1]


def test_joined_tensors_share_one_scale() -> None:
    model = prepare(residual_block())
    placement = place(model, find_products(model, contract()), results=False)
    assert placement.points["r2"] == placement.points["joined"] == placement.points["big"] == placement.points["r3"]
    assert placement.points["x"] != placement.points["r2"]


def test_what_touches_coordinates_stays_as_it_is() -> None:
    reasons = {item.node: item.kept for item in find_products(prepare(residual_block()), contract(island=True))}
    assert reasons["Conv_0"] == "touches coordinates, boxes or scores"
    assert not reasons["Conv_2"]


def test_a_tensor_without_a_range_is_named() -> None:
    model = prepare(residual_block())
    products = find_products(model, contract())
    placement = place(model, products, results=False)
    with pytest.raises(ExportError, match="no range for "):
        insert(model, products, placement, {}, ONNX_RUNTIME)
