"""Numbers that are only moved are int8 while they are, for ONNX Runtime: a quarter of the bytes.

It takes a dequantiser behind a reshape or a transpose by itself, but not behind a split in parts of their own, nor
behind a concatenation, and no quantiser before a padding. Swin cuts its windows with these. The numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import onnx
from numpy.typing import NDArray

from altermoma.calib.products import PASSIVE
from altermoma.export.graph import attribute, constant_values, consumers, drop_dead, set_nodes

_MOVES = PASSIVE | {"Concat"}
_Whole = tuple[str, tuple[str, ...]]
"""Name of the int8 numbers; their scale and zero point."""


def move_as_int8(model: onnx.ModelProto) -> None:
    """Rewrites in place; the graph computes the same numbers, bit by bit."""
    _pad_behind_quantisers(model)
    _dequantise_behind_moves(model)
    drop_dead(model)


def _pad_behind_quantisers(model: onnx.ModelProto) -> None:
    """Padding with zeros before a quantiser is padding with its zero point behind it."""
    readers, constants = consumers(model), constant_values(model)
    public = {item.name for item in model.graph.output}
    instead: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type != "Pad" or attribute(node, "mode", b"constant") != b"constant" or node.output[0] in public:
            continue
        value = node.input[2] if len(node.input) > 2 else ""
        after = readers.get(node.output[0], [])
        zero = not value or (value in constants and not constants[value].any())
        quantised = [reader.op_type for reader in after] == ["QuantizeLinear"] and len(after[0].input) == 3
        if zero and quantised and _of_one_scale(after[0], constants):
            scale, zero_point = after[0].input[1:]
            axes = node.input[3:]
            result = after[0].output[0]
            inner = f"{result}.inner"
            instead[node.name] = [
                onnx.helper.make_node("QuantizeLinear", [node.input[0], scale, zero_point], [inner], name=after[0].name)
            ]
            instead[after[0].name] = [
                onnx.helper.make_node("Pad", [inner, node.input[1], zero_point, *axes], [result], name=node.name)
            ]
    set_nodes(model, [new for node in model.graph.node for new in instead.get(node.name, [node])])


def _dequantise_behind_moves(model: onnx.ModelProto) -> None:
    readers, rounded, constants = consumers(model), _rounded(model), constant_values(model)
    whole: dict[str, _Whole] = {}
    made: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        result = node.output[0]
        moved = [reader for reader in readers.get(result, []) if reader.op_type in _MOVES]
        if node.op_type == "DequantizeLinear" and moved and result not in rounded and _of_one_scale(node, constants):
            whole[result] = node.input[0], tuple(node.input[1:])
            continue
        data = list(node.input) if node.op_type == "Concat" else list(node.input[:1])
        scales = {whole[name][1] for name in data if name in whole}
        if node.op_type in _MOVES and len(scales) == 1 and all(name in whole for name in data):
            for name in node.output:
                whole[name] = f"{name}.moved", next(iter(scales))
            nodes.append(_moving(node, {name: whole[name][0] for name in (*data, *node.output)}))
            continue
        for name in sorted(set(node.input) & (whole.keys() - made)):
            made.add(name)
            numbers, scale = whole[name]
            nodes.append(
                onnx.helper.make_node("DequantizeLinear", [numbers, *scale], [name], name=f"{name}/dequantise_moved")
            )
        nodes.append(node)
    set_nodes(model, nodes)


def _of_one_scale(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> bool:
    """Scales along an axis belong to it, and moves may put it elsewhere."""
    scale = constants.get(node.input[1])
    return scale is not None and scale.ndim == 0


def _rounded(model: onnx.ModelProto) -> Set[str]:
    """Outputs of the graph, and what reaches a quantiser by moves alone: the runtime knows these by their pairs."""
    found = {item.name for item in model.graph.output}
    for node in reversed(model.graph.node):
        if node.op_type == "QuantizeLinear":
            found.add(node.input[0])
        elif node.op_type in _MOVES and found & set(node.output):
            found.update(node.input)
    return found


def _moving(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    moving = onnx.NodeProto()
    moving.CopyFrom(node)
    for side in (moving.input, moving.output):
        for i, name in enumerate(side):
            side[i] = names.get(name, name)
    return moving
