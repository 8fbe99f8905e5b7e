"""FP8 graphs: their structure, and E4M3 rounding against a search over all its numbers."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import pytest
from export_graphs import Arrays, graph, node, random
from export_graphs import run as reference
from test_placement import DIALECTS, feeds, quantised, run

from altermoma.calib.fp8 import E4M3_MAX, emulate_fp8, fp8_plan, rounded_fp8, to_fp8
from altermoma.calib.int8 import StagePlan
from altermoma.calib.products import Product
from altermoma.errors import ExportError
from altermoma.export.contract import StageContract
from altermoma.export.lint import lint
from altermoma.export.numbers import quantised_numbers


def e4m3_numbers() -> np.ndarray:  # type: ignore[type-arg]
    """Sign, four bits of exponent (bias 7), three of mantissa; no infinity, one NaN."""
    found = [
        (mantissa / 8) * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        for exponent in range(16)
        for mantissa in range(8)
        if (exponent, mantissa) != (15, 7)
    ]
    return np.array(sorted({*found, *(-number for number in found)}))


def test_weights_are_rounded_to_the_nearest_number_of_e4m3() -> None:
    numbers = e4m3_numbers()
    assert numbers.max() == E4M3_MAX
    values = np.random.default_rng(0).normal(0, 30, (4, 50)).astype(np.float32)
    values[1] = 0.0
    scale = np.array([1.0, 1.0, 0.25, 0.01], np.float32)
    found = rounded_fp8(values, scale, 0).astype(np.float64)
    assert not found[1].any()
    for (i, j), value in np.ndenumerate(values):
        wanted = np.clip(np.float64(value) / np.float64(scale[i]), -E4M3_MAX, E4M3_MAX)
        assert abs(found[i, j] - wanted) == pytest.approx(np.abs(numbers - wanted).min(), abs=1e-4)


@pytest.mark.parametrize("kind", ["residual", "sparse"])
def test_pairs_become_fp8_and_lose_little(kind: str) -> None:
    model, signed = quantised(kind, DIALECTS["8.6"])
    found = to_fp8(signed)
    onnx.checker.check_model(found, full_check=True)
    kinds = {item.data_type for item in found.graph.initializer if item.name.endswith(("_zero", ".stored"))}
    assert kinds == {onnx.TensorProto.FLOAT8E4M3FN}
    assert [quantised_numbers(graph) for graph in (model, signed, found)] == ["", "int8", "fp8"]
    assert not any(item.data_type == onnx.TensorProto.INT8 for item in found.graph.initializer)
    assert [item.op_type for item in found.graph.node].count("DequantizeLinear") == [
        item.op_type for item in signed.graph.node
    ].count("DequantizeLinear")
    (expected,) = run(model, feeds(kind)).values()
    (got,) = reference(found, feeds(kind))
    noise = float(((got - expected) ** 2).sum() / (expected**2).sum())
    assert 1e-7 < noise < 1e-2
    (emulated,) = run(emulate_fp8(found), feeds(kind)).values()
    np.testing.assert_allclose(emulated, got, atol=0.02 * np.abs(got).max())


def test_the_lint_takes_fp8_from_ten_on() -> None:
    _, signed = quantised("sparse", DIALECTS["8.6"])
    found = to_fp8(signed)
    for version in ("10.3", "10.13.3", "11.0"):
        assert lint(found, version) == []
    assert {finding.rule for finding in lint(found, "8.6")} >= {"opset-too-new"}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("weight", "version", "refused"),
    [
        ((64, 32, 3, 3), "10.3", False),
        ((64, 32, 3, 3), "10.1", True),
        ((64, 3, 3, 3), "10.3", True),
        ((2, 64, 1, 1), "11.0", True),
        ((64, 32, 7, 7), "10.16", True),
    ],
)
def test_convolutions_without_an_fp8_kernel_are_refused(
    weight: tuple[int, ...], version: str, refused: bool, stored: bool
) -> None:
    """NVIDIA/TensorRT#3987: no implementation for the first convolution of a ResNet; no FP8 convolution before 10.2."""
    e4m3 = ml_dtypes.float8_e4m3fn
    values: Arrays = {"s": np.asarray(0.1, np.float32), "z": np.zeros((), e4m3)}
    values |= {"q": np.ones(weight, e4m3)} if stored else {"w": random(*weight)}
    nodes = [
        *([] if stored else [node("QuantizeLinear", "w s z", "q")]),
        node("DequantizeLinear", "q s z", "d"),
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("Conv", "xd d", "out"),
    ]
    model = graph(nodes, {"x": ("f", [1, weight[1], 8, 8])}, {"out": ("f", None)}, values, opset=19)
    assert [finding.rule for finding in lint(model, version)] == (["fp8-conv"] if refused else [])


def test_products_without_an_fp8_kernel_stay_out() -> None:
    shapes = {
        "wide": (32, 17, 3, 3),
        "narrow": (32, 16, 3, 3),
        "window": (32, 32, 7, 7),
        "rows": (32, 16),
        "few": (15, 32),
    }
    values = {name: random(*shape) for name, shape in shapes.items()}
    model = graph([node("Relu", "x", "y")], {"x": ("f", [1])}, {"y": ("f", None)}, values)
    one = Product(
        node="", op="", data="", weight="", bias="", result="", axis=0, group="g", kept="", macs=0, row_macs=0
    )
    products = [
        dataclasses.replace(one, op="MatMul" if name in ("rows", "few") else "Conv", weight=name) for name in shapes
    ]
    sums = dataclasses.replace(one, op="ReduceSum")
    spec = StageContract(name="g", meaning="", inputs=(), outputs=())
    plan = fp8_plan(StagePlan(contract=spec, graph=model, products=(*products, sums)))
    assert [item.weight for item in plan.chosen(frozenset({"g"}))] == ["wide", "rows", ""]


def test_two_number_formats_in_one_graph_are_an_error() -> None:
    _, signed = quantised("residual", DIALECTS["8.6"])
    found = to_fp8(signed)
    zero = next(node.input[2] for node in found.graph.node if node.op_type == "QuantizeLinear")
    next(item for item in found.graph.initializer if item.name == zero).data_type = onnx.TensorProto.INT8
    with pytest.raises(ExportError, match="quantises to fp8 and int8"):
        quantised_numbers(found)


def test_weights_that_are_int8_already_are_an_error() -> None:
    _, signed = quantised("residual", DIALECTS["10.3"])
    with pytest.raises(ExportError, match="are int8 already"):
        to_fp8(signed)
