"""Rewrites a stage graph so that every product carries its own bias: what int8 kernels can fuse."""

from __future__ import annotations

import onnx

from altermoma.export.graph import (
    attribute,
    consumers,
    copy_model,
    dims_of,
    drop_dead,
    initializers,
    producers,
    redirect,
    set_nodes,
    value_types,
)


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that is calibrated and quantised: a stage's fp32 graph with biases inside its row products.

    The rows of a sparse layer come in segments: Concat(MatMul, MatMul, ...) + bias, then maybe ReLU. Bias and ReLU
    move into the segments as Gemm and Relu, and so does the bias of a single product of rows. An int8 kernel then
    leaves int8 rows at once, where there would be three passes over float rows. The result is the same to rounding.
    """
    model = copy_model(model)
    constants = initializers(model)
    shapes = {name: dims_of(tensor) for name, tensor in value_types(model).items()}
    for add in [node for node in model.graph.node if node.op_type == "Add"]:
        _move_bias(model, add, constants, shapes)
    drop_dead(model)
    for result in [node.output[0] for node in model.graph.node if node.op_type == "Relu"]:
        _move_relu(model, producers(model)[result])
    drop_dead(model)
    del model.graph.value_info[:]
    return model


def _alone(model: onnx.ModelProto, name: str) -> bool:
    return len(consumers(model)[name]) == 1 and name not in {item.name for item in model.graph.output}


def _move_bias(
    model: onnx.ModelProto,
    add: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    shapes: dict[str, list[int | str | None] | None],
) -> None:
    biases = [name for name in add.input if name in constants and len(constants[name].dims) == 1]
    rows = [name for name in add.input if name not in constants]
    public = {item.name for item in model.graph.output}
    if len(biases) != 1 or len(rows) != 1 or len(shapes.get(rows[0]) or []) != 2 or add.output[0] in public:
        return
    products = _row_products(model, rows[0], constants)
    width = constants[biases[0]].dims[0]
    if not products or any(constants[item.input[1]].dims[1] != width for item in products):
        return
    for item in products:
        item.op_type = "Gemm"
        item.input.append(biases[0])
    redirect(model, add.output[0], rows[0])


def _row_products(model: onnx.ModelProto, name: str, constants: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The products by constants that make up these rows, each read once; none where it is something else."""
    makers = producers(model)
    node = makers.get(name)
    if node is None or not _alone(model, name):
        return []
    joined = node.op_type == "Concat" and attribute(node, "axis") == 0
    if joined and not all(part in makers and _alone(model, part) for part in node.input):
        return []
    parts = [makers[part] for part in node.input] if joined else [node]
    fits = all(item.op_type == "MatMul" and item.input[1] in constants for item in parts)
    return parts if fits and all(len(constants[item.input[1]].dims) == 2 for item in parts) else []


def _move_relu(model: onnx.ModelProto, relu: onnx.NodeProto) -> None:
    """ReLU of joined rows becomes ReLU of each part."""
    makers = producers(model)
    join = makers.get(relu.input[0])
    if join is None or join.op_type != "Concat" or not _alone(model, relu.input[0]):
        return
    parts = [makers.get(part) for part in join.input]
    if not all(part is not None and part.op_type == "Gemm" and _alone(model, part.output[0]) for part in parts):
        return
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.output[0] == relu.output[0]:
            continue
        if node.output[0] == join.output[0]:
            for i, part in enumerate(list(join.input)):
                positive = f"{part}.relu"
                nodes.append(onnx.helper.make_node("Relu", [part], [positive], name=f"{part.replace(':', '/')}/relu"))
                node.input[i] = positive
            node.output[0] = relu.output[0]
        nodes.append(node)
    set_nodes(model, nodes)
