"""Folds batch normalisation into the convolution or matrix product before it.

y = (x - mean) * f + beta with f = gamma / sqrt(var + eps) is linear in x, so that the weights take f per output channel
and the bias takes the rest. Computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from altermoma.export.graph import (
    attribute,
    consumers,
    copy_model,
    dims_of,
    drop_dead,
    initializers,
    producers,
    set_initializer,
    set_nodes,
    value_types,
)

Array = NDArray[np.float64]


def fold_batchnorm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Folds every BatchNormalization that follows a Conv, ConvTranspose, Gemm or MatMul nobody else reads.

    A gather convolution is a MatMul on [rows, channels], or one per segment of the rows and a Concat: each MatMul
    gains an Add for the bias, which runtimes join with the product.
    """
    model = copy_model(model)
    for node in [item for item in model.graph.node if item.op_type == "BatchNormalization"]:
        _fold_one(model, node)
    drop_dead(model)
    return model


def _fold_one(model: onnx.ModelProto, norm: onnx.NodeProto) -> None:
    weights = {name: numpy_helper.to_array(item) for name, item in initializers(model).items()}
    if not all(name in weights for name in norm.input[1:5]):
        return
    gamma, beta, mean, variance = (weights[name].astype(np.float64) for name in norm.input[1:5])
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    before = producers(model).get(norm.input[0])
    if before is None or not _read_once(model, norm.input[0]):
        return
    line = (factor, beta - mean * factor)
    if before.op_type in ("MatMul", "Concat"):
        products = _row_products(model, before, norm.input[0])
        if products:
            _fold_matmuls(model, products, norm, line)
        return
    fold = {"Conv": _fold_conv, "ConvTranspose": _fold_conv, "Gemm": _fold_gemm}.get(before.op_type)
    if fold is not None and all(name in weights for name in before.input[1:]):
        fold(model, before, norm, line)


def _row_products(model: onnx.ModelProto, node: onnx.NodeProto, result: str) -> list[onnx.NodeProto]:
    """The products by constant weights that make up the rows `result`; none where it is something else."""
    shape = dims_of(value_types(model)[result])
    if shape is None or len(shape) != 2:
        return []  # channels are not last: the factor is not per column
    if node.op_type == "Concat":
        made = producers(model)
        if attribute(node, "axis") != 0 or not all(name in made and _read_once(model, name) for name in node.input):
            return []
        nodes = [made[name] for name in node.input]
    else:
        nodes = [node]
    constants = initializers(model)
    return nodes if all(item.op_type == "MatMul" and item.input[1] in constants for item in nodes) else []


def _read_once(model: onnx.ModelProto, name: str) -> bool:
    return len(consumers(model)[name]) == 1 and name not in {item.name for item in model.graph.output}


def _scaled(model: onnx.ModelProto, node: onnx.NodeProto, factor: Array) -> None:
    """Multiplies a node's weights; a weight that others read too is copied first."""
    name = node.input[1]
    target = name if len(consumers(model)[name]) == 1 else f"{node.output[0]}.folded_weight"
    node.input[1] = _scaled_copy(model, name, target, factor)


def _scaled_copy(model: onnx.ModelProto, name: str, target: str, factor: Array) -> str:
    weight = numpy_helper.to_array(initializers(model)[name])
    return set_initializer(model, target, (weight.astype(np.float64) * factor).astype(weight.dtype))


def _bias_name(node: onnx.NodeProto) -> str:
    stem = node.input[1]
    return f"{stem.removesuffix('.weight')}.folded_bias"


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, norm: onnx.NodeProto) -> None:
    """Drops `norm`; `node` makes its output."""
    result = norm.output[0]
    set_nodes(model, [item for item in model.graph.node if item.output[0] != result])
    for item in model.graph.node:
        if item.output[0] == node.output[0]:
            item.output[0] = result


def _fold_conv(model: onnx.ModelProto, node: onnx.NodeProto, norm: onnx.NodeProto, line: tuple[Array, Array]) -> None:
    factor, offset = line
    weight = numpy_helper.to_array(initializers(model)[node.input[1]])
    if len(node.input) > 2:
        offset = offset + factor * numpy_helper.to_array(initializers(model)[node.input[2]]).astype(np.float64)
    _scaled(model, node, _conv_factor(node, factor, weight))
    bias = set_initializer(model, _bias_name(node), offset.astype(weight.dtype))
    del node.input[2:]
    node.input.append(bias)
    _replace(model, node, norm)


def _conv_factor(node: onnx.NodeProto, factor: Array, weight: NDArray[Any]) -> Array:
    """`factor` shaped to multiply [out, in, *k] (Conv) or [in, out / groups, *k] (ConvTranspose) weights."""
    tail = (1,) * (weight.ndim - 2)
    if node.op_type == "Conv":
        return factor.reshape(-1, 1, *tail)
    per_group = factor.reshape(attribute(node, "group", 1), -1)
    rows = np.repeat(per_group, weight.shape[0] // per_group.shape[0], axis=0)
    return rows.reshape(*weight.shape[:2], *tail)


def _fold_gemm(model: onnx.ModelProto, node: onnx.NodeProto, norm: onnx.NodeProto, line: tuple[Array, Array]) -> None:
    factor, offset = line
    weight = initializers(model)[node.input[1]]
    if len(node.input) > 2:
        old = numpy_helper.to_array(initializers(model)[node.input[2]]).astype(np.float64)
        offset = offset + factor * attribute(node, "beta", 1.0) * old
    _scaled(model, node, factor[:, None] if attribute(node, "transB", 0) else factor)
    bias = set_initializer(model, _bias_name(node), offset.astype(numpy_helper.to_array(weight).dtype))
    del node.input[2:]
    node.input.append(bias)
    kept = [item for item in node.attribute if item.name != "beta"]
    del node.attribute[:]
    node.attribute.extend(kept)
    _replace(model, node, norm)


def _fold_matmuls(
    model: onnx.ModelProto, products: list[onnx.NodeProto], norm: onnx.NodeProto, line: tuple[Array, Array]
) -> None:
    factor, offset = line
    weight = initializers(model)[products[0].input[1]]
    bias = set_initializer(model, _bias_name(products[0]), offset.astype(numpy_helper.to_array(weight).dtype))
    scaled: dict[str, str] = {}
    for node in products:
        name = node.input[1]
        if name not in scaled:
            # Segments may share a weight; then they share the folded one.
            others = [item for item in consumers(model)[name] if item not in products]
            scaled[name] = _scaled_copy(model, name, f"{node.output[0]}.folded_weight" if others else name, factor)
        node.input[1] = scaled[name]
    made = {node.output[0] for node in products}
    _replace(model, producers(model)[norm.input[0]], norm)
    _add_to_each(model, {norm.output[0]} if norm.input[0] in made else made, bias)


def _add_to_each(model: onnx.ModelProto, results: set[str], bias: str) -> None:
    """Adds the bias to what makes each of these tensors."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        result = node.output[0]
        if result in results:
            node.output[0] = f"{result}.product"
            nodes.append(onnx.helper.make_node("Add", [node.output[0], bias], [result], name=f"{node.name}/bias"))
    set_nodes(model, nodes)
