"""fp16 for what is not int8: TensorRT computes both, and what a quantiser leaves in fp32 would be the slowest part.

Operator set 17 has Q/DQ pairs for float32 alone. So what lies between pairs keeps the type float32: no such number ever
reaches memory, since the runtime fuses it into its int8 kernels. Everything else becomes fp16 as in an fp16 engine.
"""

from __future__ import annotations

import onnx

from altermoma.calib.placement import MOVING
from altermoma.export.contract import StageContract
from altermoma.export.graph import constant_values, copy_model
from altermoma.export.passes.islands import COMPUTE_OPS
from altermoma.export.passes.to_fp16 import to_fp16

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FUSED = MOVING | {"Relu", "Add"}


def mixed(model: onnx.ModelProto, contract: StageContract) -> onnx.ModelProto:
    """The graph of an int8 stage with its float part in fp16. Errors as `to_fp16`."""
    return to_fp16(copy_model(model), contract, int8_nodes(model))


def int8_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes whose inputs all come from pairs, from int8 products or from one another."""
    constants = set(constant_values(model))
    inside: set[str] = set()
    tensors: set[str] = set(constants)
    for node in model.graph.node:
        known = [name in tensors for name in node.input]
        if node.op_type in COMPUTE_OPS:
            known = [name in tensors and name not in constants for name in node.input]
        from_pairs = any(name in tensors and name not in constants for name in node.input)
        if node.op_type in _PAIR or (node.op_type in COMPUTE_OPS | _FUSED and from_pairs and _inside(node, known)):
            inside.add(node.name)
            tensors.update(node.output)
    return frozenset(inside)


def _inside(node: onnx.NodeProto, known: list[bool]) -> bool:
    """Whether what the node computes with is int8; indices and shapes do not count."""
    if node.op_type in COMPUTE_OPS:
        return known[0] and known[1]
    return all(known) if node.op_type in ("Add", "Concat") else known[0]
