"""Computes at export what does not depend on the inputs, and drops what then does nothing.

Constants are evaluated by ONNX Runtime with its own optimisations off, so that the graph keeps to the standard operator
set (its optimiser would write its private operators into it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.export.graph import (
    attribute,
    constant_of,
    copy_model,
    dims_of,
    drop_dead,
    initializers,
    opset_of,
    redirect,
    set_initializer,
    set_nodes,
    value_types,
)

_KEPT = {"QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
_SWELLING = {"Expand", "Tile", "ConstantOfShape", "Range", "EyeLike", "Pad"}
_LARGE = 1 << 20
"""A result above this many bytes is left computed where an operator merely repeats numbers."""


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Folds constants, static shapes, identities and casts that change nothing."""
    model = copy_model(model)
    kept: set[str] = set()
    while True:
        before = len(model.graph.node)
        _lift_constants(model)
        _fold_shapes(model)
        kept |= _evaluate(model, kept)
        _drop_identities(model)
        drop_dead(model)
        if len(model.graph.node) == before:
            return model


def _lift_constants(model: onnx.ModelProto) -> None:
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            set_initializer(model, node.output[0], constant_of(node))
        else:
            nodes.append(node)
    set_nodes(model, nodes)


def _fold_shapes(model: onnx.ModelProto) -> None:
    """Replaces `Shape`, and `Gather` of a `Shape`, where the sizes asked for are known."""
    if not any(node.op_type == "Shape" for node in model.graph.node):
        return
    types = value_types(model)
    constants = {name: onnx.numpy_helper.to_array(item) for name, item in initializers(model).items()}
    sizes: dict[str, list[int | str | None]] = {}
    nodes = []
    for node in model.graph.node:
        folded: NDArray[Any] | None = None
        if node.op_type == "Shape":
            dims = dims_of(types[node.input[0]]) if node.input[0] in types else None
            if dims is not None:
                dims = dims[attribute(node, "start", 0) : attribute(node, "end", len(dims))]
                sizes[node.output[0]] = dims
                folded = _all_known(dims)
        elif node.op_type == "Gather" and node.input[0] in sizes and node.input[1] in constants:
            picked = np.asarray(sizes[node.input[0]], object)[constants[node.input[1]]]
            folded = _all_known(picked)
        if folded is None:
            nodes.append(node)
        else:
            set_initializer(model, node.output[0], folded)
    set_nodes(model, nodes)


def _all_known(dims: Any) -> NDArray[np.int64] | None:
    array = np.asarray(dims, object)
    if not all(isinstance(size, int) for size in array.reshape(-1)):
        return None
    return array.astype(np.int64)


def _evaluate(model: onnx.ModelProto, kept: set[str]) -> set[str]:
    """Replaces nodes that read constants only by their results; returns results that are better left computed."""
    constant = set(initializers(model))
    outputs = {item.name for item in model.graph.output}
    foldable = []
    for node in model.graph.node:
        plain = not any(item.type == onnx.AttributeProto.GRAPH for item in node.attribute)
        ready = all(not name or name in constant for name in node.input)
        if plain and ready and node.op_type not in _KEPT and not outputs & {*node.output} and not kept & {*node.output}:
            foldable.append(node)
            constant.update(node.output)
    if not foldable:
        return set()
    inner = {name for node in foldable for name in node.output if name}
    outside = [node for node in model.graph.node if not inner & {*node.output}]
    read = {name for node in outside for name in node.input}
    # In the order of the nodes: the tracer's names count on from export to export, and must not decide the order.
    wanted = [name for node in foldable for name in node.output if name in read]
    values = _run(model, foldable, wanted)
    swelling = {name for node in foldable if node.op_type in _SWELLING for name in node.output}
    large = {name for name, value in values.items() if value.nbytes > _LARGE and name in swelling}
    gone = [name for name in wanted if name not in large]
    for name in gone:
        set_initializer(model, name, values[name])
    set_nodes(model, [node for node in model.graph.node if not {*gone} & {*node.output}])
    return large


def _run(model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]) -> dict[str, NDArray[Any]]:
    import onnxruntime

    if not wanted:
        return {}
    read = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [item for name, item in initializers(model).items() if name in read],
    )
    part = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset_of(model))], ir_version=model.ir_version
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(wanted, {}), strict=True))


def _drop_identities(model: onnx.ModelProto) -> None:
    """Removes Identity and Cast-to-the-same-type; a graph output keeps its name."""
    suspects = [node for node in model.graph.node if node.op_type in ("Identity", "Cast")]
    if not suspects:
        return
    types = value_types(model)
    outputs = {item.name for item in model.graph.output}
    fixed = {item.name for item in model.graph.input} | set(initializers(model)) | outputs
    for node in suspects:
        source, result = node.input[0], node.output[0]
        if node.op_type == "Cast" and (source not in types or types[source].elem_type != attribute(node, "to")):
            continue
        if result not in outputs:
            redirect(model, result, source)
        elif source not in fixed:
            _give_output_name(model, node, source, result)


def _give_output_name(model: onnx.ModelProto, identity: onnx.NodeProto, source: str, result: str) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == source:
                node.output[i] = result
    redirect(model, source, result)
    set_nodes(model, [n for n in model.graph.node if not (n.op_type == identity.op_type and result in n.input)])
