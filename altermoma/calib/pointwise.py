"""Int8 products of rows as 1 x 1 convolutions, for ONNX Runtime.

Its int8 Gemm fills the result with biases first and reads it again twice; its int8 convolution, channels last, works on
a few rows at a time: 2.3 to 3.5 times as fast where measured (docs/benchmarks/int8.md). The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from altermoma.export.graph import (
    attribute,
    constant_values,
    consumers,
    dims_of,
    drop_dead,
    producers,
    set_initializer,
    set_nodes,
    value_types,
)

_TO_CHANNELS, _TO_ROWS = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class _Match:
    """A product between pairs.

    Attributes:
        data, weight: their dequantisers.
        bias: int32, dequantised; empty where there is none.
        relu: whether one follows.
        last: the quantiser of the result.
    """

    node: onnx.NodeProto
    data: onnx.NodeProto
    weight: onnx.NodeProto
    bias: str
    relu: bool
    last: onnx.NodeProto


def rows_as_convolutions(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int | str | None] | None]) -> None:
    """Rewrites in place what sits between unsigned pairs; all else stays.

    Args:
        model: with the pairs of ONNX Runtime's dialect.
        shapes: of the results of products, by tensor name; rows that change from frame to frame are not numbers.
    """
    matches = _matches(model, shapes)
    if not matches:
        return
    writer = _Writer(model, shapes)
    for found in matches:
        writer.rewrite(found)
    nodes = [new for node in model.graph.node for new in writer.instead.get(node.name, [node])]
    set_nodes(model, nodes)
    drop_dead(model)


def shapes_of(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, list[int | str | None] | None]:
    """Dimensions of these tensors."""
    types = value_types(model)
    return {name: dims_of(types[name]) if name in types else None for name in names}


def _matches(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int | str | None] | None]) -> list[_Match]:
    makers, readers, constants = producers(model), consumers(model), constant_values(model)
    public = {item.name for item in model.graph.output}

    def only(name: str, op: str) -> onnx.NodeProto | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and found[0].op_type == op and name not in public else None

    matches = []
    for node in model.graph.node:
        if node.op_type not in ("Gemm", "MatMul") or not _known(shapes.get(node.output[0])):
            continue
        data, weight = (makers.get(name) for name in node.input[:2])
        if not (_is_pair(data) and _is_pair(weight)) or data is None or weight is None:
            continue
        if weight.input[0] not in constants:
            # A product of two computed pairs: a convolution's kernel must be known.
            continue
        end, bias = node.output[0], node.input[2] if len(node.input) > 2 else ""
        addition = only(end, "Add")
        if node.op_type == "MatMul" and addition is not None:
            bias = next((name for name in addition.input if name != end and _is_pair(makers.get(name))), "")
            end = addition.output[0] if bias else end
        relu = only(end, "Relu")
        last = only(relu.output[0] if relu is not None else end, "QuantizeLinear")
        if last is not None:
            matches.append(_Match(node=node, data=data, weight=weight, bias=bias, relu=relu is not None, last=last))
    return matches


def _is_pair(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _known(dims: Sequence[int | str | None] | None) -> bool:
    """Whether the shape can be written down with one open dimension at most."""
    return dims is not None and sum(not isinstance(size, int) for size in dims) <= 1


class _Writer:
    """Collects what takes the place of nodes, by their names."""

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int | str | None] | None]) -> None:
        self.model, self.shapes, self.constants = model, shapes, constant_values(model)
        self.instead: dict[str, list[onnx.NodeProto]] = {}
        self._moved: dict[str, str] = {}

    def rewrite(self, found: _Match) -> None:
        """Rows become channels before the product and rows again behind its quantiser, as int8 numbers."""
        node, stem = found.node, found.node.name
        weight = self.constants[found.weight.input[0]]
        by_output = weight if attribute(node, "transB", 0) else weight.T
        before = self._channels(found.data, by_output.shape[1])
        kernel = set_initializer(self.model, f"{stem}/kernel", by_output[:, :, None, None])
        before.append(
            _dequantise([kernel, *found.weight.input[1:]], f"{stem}.kernel", f"{stem}/kernel/dequantise", axis=0)
        )
        inputs = [self._moved[found.data.input[0]], f"{stem}.kernel", *([found.bias] if found.bias else [])]
        # Its place is the quantiser's: a bias that is added behind a product may be made behind it, too.
        after = [onnx.helper.make_node("Conv", inputs, [f"{stem}.convolved"], name=stem, kernel_shape=[1, 1])]
        end = f"{stem}.convolved"
        if found.relu:
            after.append(onnx.helper.make_node("Relu", [end], [f"{stem}.positive"], name=f"{stem}/relu"))
            end = f"{stem}.positive"
        self.instead[stem] = before
        self.instead[found.last.name] = after + self._rows(found, end)

    def _channels(self, data: onnx.NodeProto, depth: int) -> list[onnx.NodeProto]:
        """Rows [..., depth] as [1, depth, 1, rows]; once for all products that read them."""
        rows = data.input[0]
        if rows in self._moved:
            return []
        self._moved[rows] = f"{rows}.channels_dequantised"
        flat = set_initializer(self.model, f"rows_of_{depth}", np.array([1, 1, -1, depth], np.int64))
        return [
            onnx.helper.make_node("Reshape", [rows, flat], [f"{rows}.rows"], name=f"{rows}/rows"),
            onnx.helper.make_node(
                "Transpose", [f"{rows}.rows"], [f"{rows}.channels"], name=f"{rows}/channels", perm=_TO_CHANNELS
            ),
            _dequantise([f"{rows}.channels", *data.input[1:]], self._moved[rows], f"{rows}/channels/dequantise"),
        ]

    def _rows(self, found: _Match, end: str) -> list[onnx.NodeProto]:
        """[1, width, 1, rows] as the rows that the product gave."""
        stem, result, numbers = found.node.name, found.last.output[0], list(found.last.input[1:])
        dims = [size if isinstance(size, int) else -1 for size in self.shapes[found.node.output[0]] or ()]
        back = set_initializer(self.model, f"{stem}/rows_back", np.array(dims, np.int64))
        turned = f"{result}.rows_out"
        return [
            onnx.helper.make_node("QuantizeLinear", [end, *numbers], [f"{result}.out"], name=f"{stem}/quantise"),
            onnx.helper.make_node("Transpose", [f"{result}.out"], [turned], name=f"{stem}/rows", perm=_TO_ROWS),
            onnx.helper.make_node("Reshape", [turned, back], [result], name=f"{stem}/rows_back"),
        ]


def _dequantise(inputs: list[str], result: str, name: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node("DequantizeLinear", inputs, [result], name=name, **attributes)
