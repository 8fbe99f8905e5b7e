"""The products of a stage graph that int8 could speed up, and why some of them stay as they are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from altermoma.export.contract import StageContract
from altermoma.export.graph import attribute, constant_values, consumers, dims_of, producers, value_types
from altermoma.export.passes.islands import COMPUTE_OPS, fp32_islands

PASSIVE = frozenset({"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Split"})
"""Operators that only rearrange numbers."""

_BLOCKS = re.compile(r"^(.*?(?:layer\d+|stages\.\d+|blocks\.\d+|encoder_layer\d+|decoder\.\d+|layers\.\d+))(?:[./]|$)")


@dataclass(frozen=True, kw_only=True)
class Product:
    """A convolution or matrix product by constant weights, or a sum over gathered rows.

    Attributes:
        node: name of the node.
        data, weight, bias, result: its tensors; `bias` is empty where there is none, and so is `weight` of a sum, whose
            rows alone become int8: what it gathers is a quarter as wide.
        axis: of the output channels in the weight.
        group: what is switched to int8 together (see `group_of`).
        kept: why it never is; empty where it may be.
        macs: multiply-adds of one run; None where rows change from frame to frame, then `row_macs` of one row.
    """

    node: str
    op: str
    data: str
    weight: str
    bias: str
    result: str
    axis: int
    group: str
    kept: str
    macs: int | None
    row_macs: int


def find_products(model: onnx.ModelProto, contract: StageContract) -> list[Product]:
    """Every product by constant weights and every sum over gathered rows, in the order of the graph.

    Node names must be unique.

    Kept out of int8 by rule: products that touch coordinates, boxes or scores (the islands of the fp16 pass, among
    them the first sparse layer), those whose result goes straight into a softmax, and transposed convolutions, for
    which ONNX Runtime has no int8 kernel.
    """
    constants = constant_values(model)
    islands = fp32_islands(model, contract)
    softmax = _before_softmax(model)
    types = value_types(model)
    found = []
    makers = producers(model)
    for node in model.graph.node:
        if _sums_gathered(node, makers):
            found.append(_sum(node, contract.name))
        axis = _channel_axis(node, constants)
        if axis is None:
            continue
        macs, row_macs = _macs(node, constants, types)
        found.append(
            Product(
                node=node.name,
                op=node.op_type,
                data=node.input[0],
                weight=node.input[1],
                bias=node.input[2] if len(node.input) > 2 else "",
                result=node.output[0],
                axis=axis,
                group=group_of(contract.name, node.name),
                kept=_reason(node, islands, softmax),
                macs=macs,
                row_macs=row_macs,
            )
        )
    return found


def group_of(stage: str, node: str) -> str:
    """Stage and block of a node: `camera/img_backbone/layer1`, `fusion/pts_backbone/blocks.0`, `head/bbox_head/dim`.

    A block is what the name says up to the first numbered one; elsewhere two names, without the layer and operator.
    """
    path = node.rsplit("/", 1)[0]
    block = _BLOCKS.match(path)
    return f"{stage}/{block.group(1) if block else '/'.join(path.split('/')[:2])}"


def _sums_gathered(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    return node.op_type == "ReduceSum" and node.input[0] in makers and makers[node.input[0]].op_type == "Gather"


def _sum(node: onnx.NodeProto, stage: str) -> Product:
    return Product(
        node=node.name,
        op=node.op_type,
        data=node.input[0],
        weight="",
        bias="",
        result=node.output[0],
        axis=0,
        group=group_of(stage, node.name),
        kept="",
        macs=0,
        row_macs=0,
    )


def _channel_axis(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> int | None:
    """Axis of the output channels in the weight; None where the node is no product by a constant."""
    if len(node.input) < 2 or node.input[1] not in constants or node.input[0] in constants:
        return None
    weight = constants[node.input[1]]
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    if node.op_type == "MatMul" and weight.ndim == 2:
        return 1
    if node.op_type == "Gemm" and not attribute(node, "transA", 0):
        return 0 if attribute(node, "transB", 0) else 1
    return None


def _reason(node: onnx.NodeProto, islands: set[str], softmax: set[str]) -> str:
    if node.name in islands:
        return "touches coordinates, boxes or scores"
    if node.name in softmax:
        return "feeds a softmax"
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime has no int8 transposed convolution"
    return ""


def _before_softmax(model: onnx.ModelProto) -> set[str]:
    """Nodes from whose result some path leads to a softmax through rearrangement only."""
    readers = consumers(model)

    def reaches(name: str) -> bool:
        return any(
            reader.op_type == "Softmax" or (reader.op_type in PASSIVE and any(map(reaches, reader.output)))
            for reader in readers.get(name, [])
        )

    return {node.name for node in model.graph.node if node.op_type in COMPUTE_OPS and reaches(node.output[0])}


def _macs(
    node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]], types: Mapping[str, onnx.TypeProto.Tensor]
) -> tuple[int | None, int]:
    weight = constants[node.input[1]]
    tensor = types.get(node.output[0] if node.op_type != "ConvTranspose" else node.input[0])
    dims = dims_of(tensor) if tensor is not None else None
    if node.op_type in ("Conv", "ConvTranspose"):
        # One product by all weights per cell of the result (of the data, where the convolution is transposed).
        cells, each = (dims[:1] + dims[2:] if dims else [None]), weight.size
    else:
        cells, each = (dims[:-1] if dims else [None]), weight.size
    sizes = [size for size in cells if isinstance(size, int)]
    whole = len(sizes) == len(cells)
    return (math.prod(sizes) * each if whole else None), each
