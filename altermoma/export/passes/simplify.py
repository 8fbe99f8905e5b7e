"""Removes the detours that tracing leaves around gathers and reshapes."""

from __future__ import annotations

import math

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
    redirect,
    set_initializer,
    value_types,
)


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Merges reshapes of reshapes, and lets gathers read their tables as they are.

    Tracing flattens a table [M, K], gathers, and shapes the result back; the gather takes the table itself. Index
    casts from int32 to int64 go too: every runtime reads int32 tables. Reshapes say that rows stay rows. Numbers are
    looked up by GatherElements: ONNX Runtime's Gather copies each as a block of its own, four times as slowly. Windows
    that fit leave paddings by nothing, which runtimes take for layers of their own.
    """
    model = copy_model(model)
    _merge_reshapes(model)
    _look_up_numbers(model)
    _gather_by_table(model)
    _narrow_indices(model)
    _drop_empty_pads(model)
    drop_dead(model)
    _keep_rows(model)
    _drop_same_shapes(model)
    drop_dead(model)
    return model


def _target(model: onnx.ModelProto, node: onnx.NodeProto) -> NDArray[np.int64] | None:
    """The constant target of a Reshape that names every size itself (no 0 = "as in the input")."""
    if node.op_type != "Reshape" or attribute(node, "allowzero", 0):
        return None
    tensor = initializers(model).get(node.input[1])
    if tensor is None:
        return None
    shape = numpy_helper.to_array(tensor)
    return None if (shape == 0).any() else shape


def _merge_reshapes(model: onnx.ModelProto) -> None:
    makers = producers(model)
    for node in model.graph.node:
        if _target(model, node) is None:
            continue
        before = makers.get(node.input[0])
        while before is not None and before.op_type == "Reshape":
            node.input[0] = before.input[0]
            before = makers.get(node.input[0])


def _look_up_numbers(model: onnx.ModelProto) -> None:
    types = value_types(model)
    for node in model.graph.node:
        if node.op_type != "Gather" or attribute(node, "axis", 0) != 0:
            continue
        ranks = [len(dims_of(types[name]) or ()) if name in types else 0 for name in node.input]
        if ranks == [1, 1] and types[node.input[0]].elem_type == onnx.TensorProto.FLOAT:
            node.op_type = "GatherElements"


def _gather_by_table(model: onnx.ModelProto) -> None:
    makers, readers = producers(model), consumers(model)
    outputs = {item.name for item in model.graph.output}
    for node in model.graph.node:
        flat = makers.get(node.input[1]) if node.op_type == "Gather" else None
        if flat is None or attribute(node, "axis", 0) != 0 or node.output[0] in outputs:
            continue
        shape = _target(model, flat)
        after = readers[node.output[0]]
        # The order of the gathered numbers stays; what reads them must not look at the shape.
        if shape is not None and shape.tolist() == [-1] and all(_target(model, item) is not None for item in after):
            node.input[1] = flat.input[0]


def _narrow_indices(model: onnx.ModelProto) -> None:
    makers = producers(model)
    narrow = {i.name for i in model.graph.input if i.type.tensor_type.elem_type == onnx.TensorProto.INT32}
    for node in model.graph.node:
        cast = makers.get(node.input[1]) if node.op_type in ("Gather", "GatherElements") else None
        if cast is not None and cast.op_type == "Cast" and cast.input[0] in narrow:
            node.input[1] = cast.input[0]


def _drop_empty_pads(model: onnx.ModelProto) -> None:
    constants = initializers(model)
    outputs = {item.name for item in model.graph.output}
    for node in model.graph.node:
        sizes = constants.get(node.input[1]) if node.op_type == "Pad" else None
        if sizes is not None and not numpy_helper.to_array(sizes).any() and node.output[0] not in outputs:
            redirect(model, node.output[0], node.input[0])


def _keep_rows(model: onnx.ModelProto) -> None:
    """Says "as many rows as before" (0) instead of "what is left" (-1), so that row counts keep their names."""
    types = value_types(model)
    for node in model.graph.node:
        target = _target(model, node)
        if target is None or len(target) < 2 or target[0] != -1 or (target[1:] < 0).any():
            continue
        rows, *rest = dims_of(types[node.input[0]]) or [None]
        sizes = [size for size in rest if isinstance(size, int)]
        if isinstance(rows, str) and len(sizes) == len(rest) and math.prod(sizes) == math.prod(target[1:].tolist()):
            kept = np.concatenate([np.zeros(1, np.int64), target[1:]])
            node.input[1] = set_initializer(model, f"{node.output[0]}.target", kept)


def _drop_same_shapes(model: onnx.ModelProto) -> None:
    types = value_types(model)
    outputs = {item.name for item in model.graph.output}
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.output[0] in outputs:
            continue
        before, after = (dims_of(types[name]) for name in (node.input[0], node.output[0]))
        if before is not None and before == after and None not in before:
            redirect(model, node.output[0], node.input[0])
