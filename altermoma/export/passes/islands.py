"""Which nodes of a graph must compute in fp32 inside an fp16 engine.

Three sources: operators that lose too much in half precision; the layers that touch a tensor the contract calls an
island (metric coordinates on the way in, boxes and scores on the way out); patterns of node names in the contract.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import onnx

from altermoma.errors import RecipeError
from altermoma.export.contract import StageContract
from altermoma.export.graph import FLOAT, HALF, consumers, initializers, producers, value_types
from altermoma.export.passes.decompose_norm import PARTS

_FULL = (
    "LayerNormalization InstanceNormalization GroupNormalization BatchNormalization Softmax LogSoftmax "
    "Exp Log Pow Sqrt Reciprocal Softplus Erf ReduceMean ReduceL2 ReduceSumSquare ReduceLogSumExp "
    "CumSum Range TopK ArgMax ArgMin GridSample"
)
FULL_OPS = frozenset(_FULL.split())
"""Sums of squares, exponentials and sampling coordinates overflow or cancel in half precision."""

SCORE_OPS = frozenset({"TopK", "ArgMax", "ArgMin"})
COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"})
"""A walk along an island ends behind the first of these."""

Floats = frozenset[str]


def fp32_islands(model: onnx.ModelProto, contract: StageContract) -> set[str]:
    """Names of the nodes that compute in fp32.

    Raises:
        RecipeError: a pattern of the contract matches no node.
    """
    types = value_types(model)
    # Masks count as well: a comparison must see the numbers that the island computes, not rounded ones.
    followed = (FLOAT, HALF, onnx.TensorProto.BOOL)
    floats = frozenset(name for name, tensor in types.items() if tensor.elem_type in followed)
    islands = {node.name for node in model.graph.node if node.op_type in FULL_OPS or PARTS in node.name}
    islands |= _named(model, contract)
    readers = consumers(model)
    entries = [spec.name for spec in contract.inputs if spec.island]
    islands |= _walk(entries, floats, lambda name: readers.get(name, []), lambda node: node.output)
    makers = producers(model)
    exits = [spec.name for spec in contract.outputs if spec.island]
    exits += [node.input[0] for node in model.graph.node if node.op_type in SCORE_OPS]
    islands |= _walk(exits, floats, lambda name: [makers[name]] if name in makers else [], lambda node: node.input)
    islands |= _bias_adds(model, islands)
    return _bridged(model, islands, floats)


def _named(model: onnx.ModelProto, contract: StageContract) -> set[str]:
    found: set[str] = set()
    for pattern in contract.fp32_nodes:
        matches = {node.name for node in model.graph.node if re.search(pattern, node.name)}
        if not matches:
            raise RecipeError(
                f"fp32_nodes pattern {pattern!r} of stage {contract.name} matches no node",
                expected="a pattern found in at least one node name",
                remedy="see the node names in the exported ONNX file, or remove the pattern",
            )
        found |= matches
    return found


def _walk(
    names: Iterable[str],
    floats: Floats,
    step: Callable[[str], list[onnx.NodeProto]],
    onward: Callable[[onnx.NodeProto], Iterable[str]],
) -> set[str]:
    """Nodes met from `names` along float tensors, up to and including the first product on every path."""
    open_names, seen, met = list(names), set(), set()
    while open_names:
        name = open_names.pop()
        if name in seen or name not in floats:
            continue
        seen.add(name)
        for node in step(name):
            met.add(node.name)
            if node.op_type not in COMPUTE_OPS:
                open_names.extend(onward(node))
    return met


def _bias_adds(model: onnx.ModelProto, islands: set[str]) -> set[str]:
    """The bias of a product belongs to it."""
    makers, constants = producers(model), initializers(model)
    found = set()
    for node in model.graph.node:
        if node.op_type == "Add" and any(name in constants for name in node.input):
            sources = [makers[name] for name in node.input if name in makers]
            if any(source.name in islands and source.op_type in COMPUTE_OPS for source in sources):
                found.add(node.name)
    return found


def _bridged(model: onnx.ModelProto, islands: set[str], floats: Floats) -> set[str]:
    """Adds nodes that lie between islands on all sides: casting down and up again would only lose."""
    makers, readers = producers(model), consumers(model)
    grown = True
    while grown:
        grown = False
        for node in model.graph.node:
            if node.name in islands or node.op_type in COMPUTE_OPS:
                continue
            sources = [makers[name] for name in node.input if name in floats and name in makers]
            targets = [item for name in node.output if name in floats for item in readers.get(name, [])]
            if sources and targets and all(item.name in islands for item in (*sources, *targets)):
                islands.add(node.name)
                grown = True
    return islands
