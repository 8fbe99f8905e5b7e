"""Rows as 1 x 1 convolutions: the numbers of the products they replace, and the kernels that ONNX Runtime takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from export_graphs import graph, node, random
from numpy.typing import NDArray
from test_placement import contract, run

from altermoma.calib.insert import ONNX_RUNTIME, insert
from altermoma.calib.int8 import StagePlan, quantised
from altermoma.calib.placement import needed, place
from altermoma.calib.pointwise import rows_as_convolutions
from altermoma.calib.products import find_products
from altermoma.calib.scales import Range
from altermoma.calib.segments import prepare

Found = tuple[onnx.ModelProto, onnx.ModelProto, NDArray[Any], NDArray[Any]]
"""The graph with products, that with convolutions, the data, and what fp32 computes."""


def tokens() -> onnx.ModelProto:
    """The part of a transformer block that has no attention: GELU(x W0 + b0) W1 + b1, added to x."""
    nodes = [
        node("MatMul", "x w0", "m0"),
        node("Add", "b0 m0", "s0"),
        node("Div", "s0 root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "p"),
        node("Mul", "s0 p", "q"),
        node("Mul", "q half", "g"),
        node("MatMul", "g w1", "m1"),
        node("Add", "m1 b1", "s1"),
        node("Add", "x s1", "y"),
    ]
    weights = {
        "w0": random(16, 64, seed=1) / 4,
        "b0": random(64, seed=2),
        "w1": random(64, 16, seed=3) / 8,
        "b1": random(16, seed=4),
        "root": np.float32(np.sqrt(2)),
        "one": np.float32(1),
        "half": np.float32(0.5),
    }
    return graph(nodes, {"x": ("f", [2, 49, 16])}, {"y": ("f", None)}, weights)


def rows() -> onnx.ModelProto:
    """ReLU(x W + b) of rows that change from frame to frame, read twice."""
    nodes = [
        node("MatMul", "x w", "m"),
        node("Add", "m b", "s"),
        node("Relu", "s", "r"),
        node("MatMul", "r v", "n"),
        node("MatMul", "r u", "o"),
        node("Add", "n o", "y"),
    ]
    weights = {
        "w": random(24, 16, seed=1) / 4,
        "b": random(16, seed=2),
        "v": random(16, 8, seed=3) / 4,
        "u": random(16, 8, seed=4) / 4,
    }
    return graph(nodes, {"x": ("f", ["N", 24])}, {"y": ("f", None)}, weights)


GRAPHS = {"tokens": (tokens, (2, 49, 16)), "rows": (rows, (37, 24))}


@pytest.fixture(params=sorted(GRAPHS))
def found(request: pytest.FixtureRequest) -> Found:
    made, shape = GRAPHS[request.param]
    model = prepare(made())
    products = tuple(find_products(model, contract()))
    placement = place(model, products, results=True)
    data = random(*shape, seed=7)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = sorted(needed([placement]))
    for name in set(names) - {"x", "y"}:
        watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    seen = {"x": data} | run(watched, {"x": data})
    ranges = {n: Range(low=min(0.0, float(seen[n].min())), high=max(0.0, float(seen[n].max()))) for n in names}
    plan = StagePlan(contract=contract(), graph=model, products=products)
    before = insert(model, products, placement, ranges, ONNX_RUNTIME)
    return before, quantised(plan, frozenset(plan.groups), ranges), data, seen["y"]


def test_the_numbers_are_those_of_the_products(
    found: Found,
) -> None:
    before, after, data, expected = found
    onnx.checker.check_model(after, full_check=True)
    theirs, ours = (run(model, {"x": data})["y"] for model in (before, after))
    step = max(float(np.ptp(expected)) / 255, 1e-6)
    # Requantised once instead of twice: a few numbers fall to the other side, by one step.
    assert np.abs(ours - theirs).max() <= 2.5 * step
    assert np.abs(ours - theirs).mean() < 0.1 * step
    assert np.abs(ours - expected).mean() < 2 * step


def test_no_product_is_left_to_the_slow_kernels(
    found: Found,
    tmp_path: Path,
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(found[1].SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [item.op_type for item in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == sum(item.op_type in ("MatMul", "Gemm") for item in found[0].graph.node)
    assert not {"Transpose", "Conv", "MatMul", "Gemm", "QGemm", "MatMulIntegerToFloat", "Erf"} & set(kinds)


def test_a_product_of_two_computed_pairs_is_left_alone() -> None:
    nodes = [
        node("QuantizeLinear", "x step zero", "x8"),
        node("DequantizeLinear", "x8 step zero", "xf"),
        node("QuantizeLinear", "z step zero", "z8"),
        node("DequantizeLinear", "z8 step zero", "zf"),
        node("MatMul", "xf zf", "m"),
        node("QuantizeLinear", "m step zero", "m8"),
        node("DequantizeLinear", "m8 step zero", "y"),
    ]
    weights = {"step": np.float32(0.1), "zero": np.uint8(128)}
    model = graph(nodes, {"x": ("f", [6, 8]), "z": ("f", [8, 4])}, {"y": ("f", None)}, weights)
    before = model.SerializeToString(deterministic=True)
    rows_as_convolutions(model, {"m": [6, 4]})
    assert model.SerializeToString(deterministic=True) == before
