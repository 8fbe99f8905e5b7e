"""Graph passes change what a graph looks like, never what it computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from export_graphs import Arrays, graph, node, random, run

from altermoma.errors import ExportError
from altermoma.export.contract import StageContract, TensorSpec
from altermoma.export.graph import dims_of, value_types
from altermoma.export.parity import open_session, run_session
from altermoma.export.passes.annotate import annotate
from altermoma.export.passes.decompose_norm import decompose_norm
from altermoma.export.passes.fold_batchnorm import fold_batchnorm
from altermoma.export.passes.fold_constants import fold_constants
from altermoma.export.passes.names import ModulePaths, readable_names
from altermoma.export.passes.simplify import simplify


def operators(model: onnx.ModelProto) -> list[str]:
    return [item.op_type for item in model.graph.node]


def norm_weights(channels: int) -> Arrays:
    rng = np.random.default_rng(3)
    return {
        "gamma": rng.uniform(-2, 2, channels).astype(np.float32),
        "beta": rng.normal(size=channels).astype(np.float32),
        "mean": rng.normal(size=channels).astype(np.float32),
        "var": rng.uniform(0.01, 4, channels).astype(np.float32),
    }


NORM = node("BatchNormalization", "y gamma beta mean var", "out", epsilon=1e-3)

FOLDABLE = {
    "conv": (node("Conv", "x w", "y", pads=[1, 1, 1, 1]), [2, 4, 5, 6], {"w": (6, 4, 3, 3)}, 6),
    "conv_bias_groups": (node("Conv", "x w b", "y", group=2), [2, 4, 5, 6], {"w": (6, 2, 2, 2), "b": (6,)}, 6),
    "conv_1d": (node("Conv", "x w", "y"), [2, 4, 9], {"w": (5, 4, 1)}, 5),
    "transposed": (node("ConvTranspose", "x w b", "y", strides=[2]), [1, 4, 3], {"w": (4, 5, 2), "b": (5,)}, 5),
    "gemm": (node("Gemm", "x w b", "y", alpha=0.5, beta=2.0), [7, 4], {"w": (4, 3), "b": (3,)}, 3),
    "gemm_transposed": (node("Gemm", "x w", "y", transB=1), [7, 4], {"w": (3, 4)}, 3),
    "gather_conv": (node("MatMul", "x w", "y"), [7, 4], {"w": (4, 3)}, 3),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDABLE)
def test_batch_norm_folds_exactly(case: str) -> None:
    before_norm, shape, weights, channels = FOLDABLE[case]
    values = {name: random(*size, seed=i) for i, (name, size) in enumerate(weights.items(), start=1)}
    model = graph([before_norm, NORM], {"x": ("f", shape)}, {"out": ("f", None)}, values | norm_weights(channels))
    folded = fold_batchnorm(model)
    onnx.checker.check_model(folded, full_check=True)
    assert "BatchNormalization" not in operators(folded)
    assert "BatchNormalization" in operators(model)
    x = random(*shape, seed=9)
    np.testing.assert_allclose(run(folded, {"x": x})[0], run(model, {"x": x})[0], atol=1e-5, rtol=1e-5)


def test_each_segment_of_the_rows_gets_its_bias() -> None:
    nodes = [
        node("MatMul", "a w", "first"), node("MatMul", "b v", "second"),
        node("Concat", "first second", "y", axis=0), NORM,
    ]  # fmt: skip
    weights = {"w": random(4, 3), "v": random(6, 3, seed=1), **norm_weights(3)}
    model = graph(nodes, {"a": ("f", ["N", 4]), "b": ("f", ["M", 6])}, {"out": ("f", None)}, weights)
    folded = fold_batchnorm(model)
    onnx.checker.check_model(folded, full_check=True)
    assert operators(folded) == ["MatMul", "Add", "MatMul", "Add", "Concat"]
    feeds = {"a": random(5, 4, seed=2), "b": random(7, 6, seed=3)}
    np.testing.assert_allclose(run(folded, feeds)[0], run(model, feeds)[0], atol=1e-5)


def test_grouped_transposed_convolution_against_torch() -> None:
    """ONNX's reference implementation fails on groups here."""
    norm, weight, x = norm_weights(6), random(4, 3, 2, 2), random(1, 4, 3, 3, seed=9)
    model = graph(
        [node("ConvTranspose", "x w", "y", group=2), NORM],
        {"x": ("f", [1, 4, 3, 3])},
        {"out": ("f", None)},
        {"w": weight, **norm},
    )
    folded = fold_batchnorm(model)
    assert operators(folded) == ["ConvTranspose"]
    y = F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), groups=2)
    stats = (torch.from_numpy(norm[name]) for name in ("mean", "var", "gamma", "beta"))
    wanted = F.batch_norm(y, *stats, eps=1e-3).numpy()
    found = run_session(open_session(folded), {"x": x})["out"]
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)


def test_shared_weights_are_folded_apart() -> None:
    nodes = [
        node("MatMul", "x w", "y"), NORM,
        node("MatMul", "x w", "plain"),
    ]  # fmt: skip
    outputs = {"out": ("f", None), "plain": ("f", None)}
    model = graph(nodes, {"x": ("f", [5, 4])}, outputs, {"w": random(4, 3), **norm_weights(3)})  # type: ignore[arg-type]
    folded = fold_batchnorm(model)
    assert "BatchNormalization" not in operators(folded)
    for found, wanted in zip(run(folded, {"x": random(5, 4)}), run(model, {"x": random(5, 4)}), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("why", ["read_twice", "rank_3", "computed_statistics", "no_product"])
def test_what_cannot_be_folded_stays(why: str) -> None:
    inputs: dict[str, tuple[str, list[int | str]]] = {"x": ("f", [5, 4])}
    outputs: dict[str, tuple[str, list[int | str] | None]] = {"out": ("f", None)}
    nodes, weights = [node("MatMul", "x w", "y"), NORM], {"w": random(4, 3), **norm_weights(3)}
    if why == "read_twice":
        outputs["y"] = ("f", None)
    elif why == "rank_3":
        inputs["x"] = ("f", [2, 3, 4])
    elif why == "computed_statistics":
        inputs["mean"] = ("f", [3])
        del weights["mean"]
    else:
        nodes = [node("Relu", "x", "y"), NORM]
        weights = norm_weights(4)
    model = graph(nodes, inputs, outputs, weights)
    assert "BatchNormalization" in operators(fold_batchnorm(model))


def test_constants_fold_and_the_rest_stays() -> None:
    """A reshape to a shape computed from static and dynamic sizes, a doubled weight, casts and identities."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "width"),
        node("Mul", "width two", "double"),
        node("Unsqueeze", "double zero_axis", "double_1"),
        node("Concat", "minus double_1", "target", axis=0),
        node("Identity", "w", "w_same"),
        node("Add", "w_same w", "w_sum"),
        node("Mul", "x w_sum", "scaled"),
        node("Cast", "scaled", "scaled_same", to=onnx.TensorProto.FLOAT),
        node("Reshape", "scaled_same target", "shaped"),
        node("Identity", "shaped", "out"),
    ]
    weights = {
        "one": np.asarray(1, np.int64), "two": np.asarray(2, np.int64), "zero_axis": np.asarray([0], np.int64),
        "minus": np.asarray([-1], np.int64), "w": random(6),
    }  # fmt: skip
    model = graph(nodes, {"x": ("f", ["N", 6])}, {"out": ("f", None)}, weights)
    folded = fold_constants(model)
    assert operators(folded) == ["Mul", "Reshape"]
    assert folded.graph.output[0].name == "out"
    onnx.checker.check_model(folded, full_check=True)
    for rows in (2, 8):
        x = random(rows, 6)
        np.testing.assert_allclose(run(folded, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-6)
        assert run(folded, {"x": x})[0].shape == (rows // 2, 12)


def test_dynamic_sizes_are_not_folded() -> None:
    nodes = [node("Shape", "x", "shape"), node("Gather", "shape zero", "rows"), node("Cast", "rows", "out", to=1)]
    model = graph(nodes, {"x": ("f", ["N", 6])}, {"out": ("f", None)}, {"zero": np.asarray(0, np.int64)})
    for rows in (1, 7):
        assert run(fold_constants(model), {"x": random(rows, 6)})[0] == rows


def test_quantised_weights_are_not_unfolded() -> None:
    weights = {
        "q": np.asarray([[1, -2], [3, 4]], np.int8),
        "scale": np.asarray(0.5, np.float32),
        "zero": np.asarray(0, np.int8),
    }
    nodes = [node("DequantizeLinear", "q scale zero", "w"), node("MatMul", "x w", "out")]
    model = graph(nodes, {"x": ("f", [1, 2])}, {"out": ("f", None)}, weights)
    assert operators(fold_constants(model)) == ["DequantizeLinear", "MatMul"]


def test_large_repetitions_stay_computed() -> None:
    weights = {"row": random(1, 512), "many": np.asarray([2048, 512], np.int64)}
    nodes = [node("Expand", "row many", "wide"), node("Add", "x wide", "out")]
    model = graph(nodes, {"x": ("f", [2048, 512])}, {"out": ("f", None)}, weights)
    assert operators(fold_constants(model)) == ["Expand", "Add"]
    weights["many"] = np.asarray([4, 512], np.int64)
    model = graph(nodes, {"x": ("f", [4, 512])}, {"out": ("f", None)}, weights)
    assert operators(fold_constants(model)) == ["Add"]


def gather_graph(after: str) -> onnx.ModelProto:
    nodes = [
        node("Cast", "table", "table_long", to=onnx.TensorProto.INT64),
        node("Reshape", "table_long flat", "list"),
        node("Gather", "rows list", "picked"),
        node("Reshape", "picked back", "cube"),
        node("Reshape", "cube wide", "out") if after == "Reshape" else node(after, "picked", "out"),
    ]
    weights = {
        "flat": np.asarray([-1], np.int64),
        "back": np.asarray([-1, 3, 4], np.int64),
        "wide": np.asarray([-1, 12], np.int64),
    }
    return graph(nodes, {"rows": ("f", ["N", 4]), "table": ("i", ["M", 3])}, {"out": ("f", None)}, weights)


def test_gathers_read_their_tables() -> None:
    model = gather_graph("Reshape")
    simple = simplify(model)
    onnx.checker.check_model(simple, full_check=True)
    assert operators(simple) == ["Gather", "Reshape"]
    assert list(simple.graph.node[0].input) == ["rows", "table"]
    feeds = {"rows": random(5, 4), "table": np.random.default_rng(0).integers(0, 5, (7, 3)).astype(np.int32)}
    np.testing.assert_array_equal(run(simple, feeds)[0], run(model, feeds)[0])


def test_gathers_whose_shape_matters_keep_their_list() -> None:
    model = gather_graph("Relu")
    feeds = {"rows": random(5, 4), "table": np.ones((7, 3), np.int32)}
    found = run(simplify(model), feeds)[0]
    assert found.shape == (21, 4)
    np.testing.assert_array_equal(found, run(model, feeds)[0])


def test_rows_keep_their_name_and_needless_reshapes_go() -> None:
    weights = {"same": np.asarray([-1, 3, 4], np.int64), "wide": np.asarray([-1, 12], np.int64)}
    nodes = [
        node("Relu", "x", "a"), node("Reshape", "a same", "b"), node("Neg", "b", "c"), node("Reshape", "c wide", "out"),
    ]  # fmt: skip
    model = graph(nodes, {"x": ("f", ["N", 3, 4])}, {"out": ("f", None)}, weights)
    simple = simplify(model)
    assert operators(simple) == ["Relu", "Neg", "Reshape"]
    assert dims_of(value_types(simple)["c"]) == ["N", 3, 4]
    for rows in (0, 5):
        x = random(rows, 3, 4)
        found = run_session(open_session(simple), {"x": x})["out"]
        np.testing.assert_array_equal(found, np.negative(np.maximum(x, 0)).reshape(rows, 12))


def test_paddings_by_nothing_go() -> None:
    nodes = [
        node("Pad", "x none", "a"),
        node("Relu", "a", "b"),
        node("Pad", "b one", "c"),
        node("Neg", "c", "d"),
        node("Pad", "d none", "out"),
    ]
    weights = {"none": np.zeros(4, np.int64), "one": np.asarray([0, 1, 0, 0], np.int64)}
    model = graph(nodes, {"x": ("f", [3, 4])}, {"out": ("f", None)}, weights)
    simple = simplify(model)
    assert operators(simple) == ["Relu", "Pad", "Neg", "Pad"]  # an output keeps its name, and what makes it
    x = random(3, 4)
    np.testing.assert_array_equal(run(simple, {"x": x})[0], run(model, {"x": x})[0])


def test_reshapes_that_mix_rows_stay() -> None:
    nodes = [node("Relu", "x", "a"), node("Reshape", "a wide", "out")]
    model = graph(nodes, {"x": ("f", ["N", 4])}, {"out": ("f", None)}, {"wide": np.asarray([-1, 8], np.int64)})
    np.testing.assert_array_equal(run(simplify(model), {"x": np.ones((6, 4), np.float32)})[0], np.ones((3, 8)))


def test_reshapes_that_copy_sizes_are_not_merged() -> None:
    """0 in a target means the size of *this* reshape's input."""
    weights = {"first": np.asarray([6, 2], np.int64), "second": np.asarray([0, 1, 2], np.int64)}
    nodes = [node("Reshape", "x first", "y"), node("Reshape", "y second", "out")]
    model = graph(nodes, {"x": ("f", [3, 4])}, {"out": ("f", None)}, weights)
    np.testing.assert_array_equal(run(simplify(model), {"x": random(3, 4)})[0], random(3, 4).reshape(6, 1, 2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_norm_written_out_is_the_same(bias: bool, axis: int) -> None:
    size = (5,) if axis == -1 else (4, 5)
    weights = {"scale": random(*size), "shift": random(*size, seed=1)}
    inputs = "x scale shift" if bias else "x scale"
    model = graph(
        [node("LayerNormalization", inputs, "out", axis=axis, epsilon=1e-4)],
        {"x": ("f", ["N", 4, 5])},
        {"out": ("f", None)},
        weights,
    )
    plain = decompose_norm(model)
    onnx.checker.check_model(plain, full_check=True)
    assert "LayerNormalization" not in operators(plain)
    assert all(len(item.input) == 1 for item in plain.graph.node if item.op_type == "ReduceMean")
    x = random(3, 4, 5, seed=4) * 3 + 1
    np.testing.assert_allclose(run(plain, {"x": x})[0], run(model, {"x": x})[0], atol=1e-5)


def test_names_are_unique_readable_and_public_ones_stay() -> None:
    nodes = [
        node("Conv", "x onnx::Conv_7", "/layer1/layer1.0/conv1/Conv_output_0", name="/layer1/layer1.0/conv1/Conv"),
        node("Conv", "/layer1/layer1.0/conv1/Conv_output_0 a.weight", "c", name="/layer1/layer1.0/conv1/Conv"),
        node("Relu", "c", "out", name="/layer1/layer1.0/Relu"),
    ]
    nodes[2].name = ""
    weights = {"onnx::Conv_7": random(3, 3, 1, 1), "a.weight": random(3, 3, 1, 1, seed=1)}
    model = graph(nodes, {"x": ("f", [1, 3, 2, 2])}, {"out": ("f", None)}, weights)
    model.graph.node[2].name = ""
    paths = ModulePaths(["layer1", "layer1.0", "layer1.0.conv1"])
    named = readable_names(model, lambda name: paths.of_node(name, elsewhere="stage"))
    onnx.checker.check_model(named, full_check=True)
    assert [item.name for item in named.graph.node] == ["layer1/0/conv1/Conv", "layer1/0/conv1/Conv_2", "stage/Relu"]
    assert {item.name for item in named.graph.initializer} == {"layer1/0/conv1/Conv.weight", "a.weight"}
    assert (named.graph.input[0].name, named.graph.output[0].name) == ("x", "out")
    x = random(1, 3, 2, 2, seed=5)
    np.testing.assert_array_equal(run(named, {"x": x})[0], run(model, {"x": x})[0])


MODULES = ["", "head", "head.branches", "head.branches.0", "head.branches.0.box", "head.branches.0.box.0", "lone",
           "lone.0", "two", "two.a", "two.a.0", "two.b", "two.b.0"]  # fmt: skip


@pytest.mark.parametrize(
    ("traced", "path"),
    [
        ("/head/box/box.0/Conv", "head/branches/0/box/0/Conv"),
        ("/head/branches.0/Relu", "head/branches/0/Relu"),
        ("/lone.0/Conv_1", "lone/0/Conv_1"),
        ("/head/Add", "head/Add"),
        ("/Cast", "stage/Cast"),
    ],
)
def test_containers_that_are_never_called_are_in_the_path(traced: str, path: str) -> None:
    assert ModulePaths(MODULES).of_node(traced, elsewhere="stage") == path


@pytest.mark.parametrize(("traced", "found"), [("/two/0/Conv", r"two\.a\.0, two\.b\.0"), ("/other/Conv", "no module")])
def test_a_node_that_fits_no_module_or_two_is_an_error(traced: str, found: str) -> None:
    with pytest.raises(ExportError, match=found):
        ModulePaths(MODULES).of_node(traced, elsewhere="stage")


def test_sizes_are_named_only_where_they_follow_from_the_rows() -> None:
    """[N, 6] flattened to rows of 3 has 2*N of them; to rows of 4 it has no whole number of N."""
    weights = {"threes": np.asarray([-1, 3], np.int64), "fours": np.asarray([-1, 4], np.int64)}
    nodes = [
        node("Reshape", "x threes", "a"), node("Relu", "a", "b"),
        node("Reshape", "b fours", "c"), node("Relu", "c", "y"),
    ]  # fmt: skip
    x = TensorSpec(name="x", dtype="float32", shape=("N", 6), meaning="rows", unit="m")
    y = TensorSpec(name="y", dtype="float32", shape=("M", 4), meaning="others", unit="m")
    contract = StageContract(name="stage", meaning="a stage", inputs=(x,), outputs=(y,))
    model = graph(nodes, {"x": ("f", ["N", 6])}, {"y": ("f", ["M", 4])}, weights)
    named = annotate(model, contract, {})
    sizes = {info.name: dims_of(info.type.tensor_type) for info in named.graph.value_info}
    assert sizes["a"] == sizes["b"] == ["2*N", 3]
    assert sizes["c"] == [None, 4]
    assert named.graph.input[0].doc_string == "rows [m]"


def test_numbers_are_looked_up_one_by_one_and_rows_as_rows() -> None:
    inputs = {"numbers": ("f", ["N"]), "rows": ("f", ["N", 1]), "table": ("i", ["M"])}
    nodes = [node("Gather", "numbers table", "out"), node("Gather", "rows table", "other")]
    model = graph(nodes, inputs, {"out": ("f", None), "other": ("f", None)}, {})
    simple = simplify(model)
    assert operators(simple) == ["GatherElements", "Gather"]
    table = np.random.default_rng(0).integers(0, 5, 7).astype(np.int32)
    feeds = {"numbers": random(5), "rows": random(5, 1), "table": table}
    for found, wanted in zip(run(simple, feeds), run(model, feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)
