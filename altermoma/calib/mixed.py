"""fp16 for what is not int8: TensorRT computes both, and what a quantiser leaves in fp32 would be the slowest part.

Operator set 17 has Q/DQ pairs for float32 alone. So what lies between pairs keeps the type float32: no such number ever
reaches memory, since the runtime fuses it into its int8 kernels. Everything else becomes fp16 as in an fp16 engine.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from altermoma.calib.placement import MOVING
from altermoma.export.contract import StageContract
from altermoma.export.graph import consumers, copy_model, producers
from altermoma.export.passes.islands import COMPUTE_OPS
from altermoma.export.passes.to_fp16 import to_fp16

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FUSED = MOVING | {"Relu", "Add"}


def mixed(model: onnx.ModelProto, contract: StageContract) -> onnx.ModelProto:
    """The graph of an int8 stage with its float part in fp16. Errors as `to_fp16`."""
    return to_fp16(copy_model(model), contract, int8_nodes(model))


def int8_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Names of pairs, of the products between them, and of what lies between a product and the next pair."""
    makers, readers = producers(model), consumers(model)
    pairs = {node.name for node in model.graph.node if node.op_type in _PAIR}
    products = {
        node.name
        for node in model.graph.node
        if node.op_type in COMPUTE_OPS and all(_from_pair(makers, name) for name in node.input[:2])
    }
    inside = pairs | products
    # Forwards: what only reads int8 numbers. Backwards: what is not rounded in the end is no part of it.
    for node in model.graph.node:
        if node.op_type in _FUSED and all(name in makers and makers[name].name in inside for name in _read(node)):
            inside.add(node.name)
    public = {item.name for item in model.graph.output}
    for node in reversed(model.graph.node):
        if node.name in inside and node.name not in pairs | products:
            ends = [reader.name in inside for name in node.output for reader in readers.get(name, [])]
            if not all(ends) or not ends or public & set(node.output):
                inside.discard(node.name)
    return frozenset(inside)


def _from_pair(makers: Mapping[str, onnx.NodeProto], name: str) -> bool:
    return name in makers and makers[name].op_type == "DequantizeLinear"


def _read(node: onnx.NodeProto) -> list[str]:
    """The inputs that hold numbers; indices, shapes and scales do not."""
    return list(node.input) if node.op_type in ("Add", "Concat") else list(node.input[:1])
