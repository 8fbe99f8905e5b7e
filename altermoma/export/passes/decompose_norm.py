"""Writes LayerNormalization as elementary operators, for TensorRT 8.5, whose parser does not know it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from altermoma.export.graph import attribute, copy_model, dims_of, set_initializer, set_nodes, value_types

PARTS = "/norm_parts/"
"""Marks the nodes made here; the fp16 pass keeps them in fp32."""


def decompose_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replaces every LayerNormalization by ReduceMean, Sub, Mul, Sqrt, Div. Reductions keep `axes` as an attribute."""
    model = copy_model(model)
    types = value_types(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        dims = dims_of(types[node.input[0]]) or []
        nodes.extend(_parts(model, node, len(dims)))
    set_nodes(model, nodes)
    return model


def _parts(model: onnx.ModelProto, node: onnx.NodeProto, rank: int) -> list[onnx.NodeProto]:
    stem = f"{node.name}{PARTS}"
    first = attribute(node, "axis", -1) % rank
    axes = list(range(first, rank))
    epsilon = set_initializer(model, f"{stem}epsilon", np.float32(attribute(node, "epsilon", 1e-5)).reshape(()))
    made: list[onnx.NodeProto] = []

    def step(op: str, inputs: list[str], result: str, label: str, **attributes: Any) -> str:
        made.append(onnx.helper.make_node(op, inputs, [result], name=f"{stem}{label}", **attributes))
        return result

    x = node.input[0]
    mean = step("ReduceMean", [x], f"{stem}mean.out", "mean", axes=axes, keepdims=1)
    centred = step("Sub", [x, mean], f"{stem}centred.out", "centred")
    square = step("Mul", [centred, centred], f"{stem}square.out", "square")
    variance = step("ReduceMean", [square], f"{stem}variance.out", "variance", axes=axes, keepdims=1)
    padded = step("Add", [variance, epsilon], f"{stem}padded.out", "padded")
    deviation = step("Sqrt", [padded], f"{stem}deviation.out", "deviation")
    last = step("Div", [centred, deviation], f"{stem}normal.out", "normal")
    last = step("Mul", [last, node.input[1]], f"{stem}scaled.out", "scaled")
    if len(node.input) > 2 and node.input[2]:
        step("Add", [last, node.input[2]], f"{stem}shifted.out", "shifted")
    made[-1].output[0] = node.output[0]
    return made
