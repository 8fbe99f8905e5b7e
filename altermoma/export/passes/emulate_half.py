"""Makes the rounding of an fp16 graph explicit, so that a CPU shows what half precision does.

ONNX Runtime's CPU backend computes fp16 graphs in fp32 and drops the casts between its layers, so that its answers are
better than those of any fp16 engine: 30.01 stays 30.01 although the graph says half. Here every layer that an engine
computes in half precision computes in fp32 and rounds its result (Cast to float16 and back, which the runtime keeps).
Sums inside a layer are exact to fp32, as in engines that accumulate in fp32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from altermoma.export.graph import FLOAT, HALF, copy_model, set_nodes, value_types

EXACT_OPS = frozenset(
    {"Reshape", "Transpose", "Gather", "GatherElements", "Concat", "Slice", "Squeeze", "Unsqueeze", "Expand", "Flatten",
     "Split", "Tile", "Identity", "Relu", "MaxPool", "Max", "Min", "Neg", "Abs", "Where", "Pad"}
)  # fmt: skip
"""Give numbers they were given, which are rounded already."""


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph with the inputs and outputs of the fp16 `model` that rounds as an fp16 engine does."""
    twin = copy_model(model)
    halves = {name for name, tensor in value_types(model).items() if tensor.elem_type == HALF}
    for item in twin.graph.initializer:
        if item.data_type == HALF:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float32), item.name))
    public = {item.name for item in (*twin.graph.input, *twin.graph.output)} & halves
    nodes = [
        onnx.helper.make_node("Cast", [i.name], [_inner(i.name)], name=f"{i.name}/entry", to=FLOAT)
        for i in twin.graph.input
        if i.name in public
    ]
    for node in twin.graph.node:
        nodes += _rounded(node, halves, public)
    nodes += [
        onnx.helper.make_node("Cast", [_inner(o.name)], [o.name], name=f"{o.name}/exit", to=HALF)
        for o in twin.graph.output
        if o.name in public
    ]
    set_nodes(twin, nodes)
    del twin.graph.value_info[:]
    return twin


def _inner(name: str) -> str:
    return f"{name}.rounded"


def _rounded(node: onnx.NodeProto, halves: set[str], public: set[str]) -> list[onnx.NodeProto]:
    """The node in fp32 and, where it makes new half numbers, their rounding."""
    made = [i for i, name in enumerate(node.output) if name in halves]
    for names in (node.input, node.output):
        for i, name in enumerate(names):
            names[i] = _inner(name) if name in public else name
    for item in node.attribute:
        if node.op_type == "Cast" and item.name == "to" and item.i == HALF:
            item.i = FLOAT
        if node.op_type == "ConstantOfShape" and item.name == "value" and item.t.data_type == HALF:
            item.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item.t).astype(np.float32)))
    if not made or node.op_type in EXACT_OPS:
        return [node]
    nodes = [node]
    for i in made:
        name = node.output[i]
        raw, half = f"{name}.raw", f"{name}.half"
        node.output[i] = raw
        nodes.append(onnx.helper.make_node("Cast", [raw], [half], name=f"{node.name}/round_{i}", to=HALF))
        nodes.append(onnx.helper.make_node("Cast", [half], [name], name=f"{node.name}/widen_{i}", to=FLOAT))
    return nodes
