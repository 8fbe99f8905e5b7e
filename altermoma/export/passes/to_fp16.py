"""Writes half precision into the graph: weights, casts and the islands that stay in fp32.

The result is strongly typed by itself, as TensorRT 11 demands and 10.x offers; 8.x reads it too. Integer tables stay
int32. Inputs from outside a stage chain stay float32 and are cast inside; tensors handed from stage to stage are
float16, which halves their traffic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from altermoma.errors import ExportError
from altermoma.export.contract import StageContract
from altermoma.export.graph import FLOAT, HALF, copy_model, drop_dead, set_nodes, value_types
from altermoma.export.passes.islands import fp32_islands

HALF_MAX = 65504.0
_FLOAT_ONLY_INPUTS = {"Resize": {1, 2}, "Upsample": {1}}
"""Inputs (region of interest, scales) that the operator set defines as float32 whatever the data are."""


def to_fp16(model: onnx.ModelProto, contract: StageContract, kept: frozenset[str] = frozenset()) -> onnx.ModelProto:
    """Gives the fp16 graph of a stage. Node names must be unique; those in `kept` stay as they are.

    Raises:
        ExportError: a weight outside the range of half precision, or a graph with subgraphs.
    """
    return _Halving(copy_model(model), contract, kept).run()


class _Halving:
    """One rewriting. `self.present` holds the element type that each float tensor has so far."""

    def __init__(self, model: onnx.ModelProto, contract: StageContract, kept: frozenset[str]) -> None:
        self.model = model
        self.islands = fp32_islands(model, contract) | kept
        self.floats = {name for name, tensor in value_types(model).items() if tensor.elem_type == FLOAT}
        self.weights = {t.name: t for t in model.graph.initializer if t.data_type == FLOAT}
        self.floats |= set(self.weights)
        self.between = {spec.name for spec in (*contract.inputs, *contract.outputs) if spec.between}
        self.present: dict[str, int] = {}
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> onnx.ModelProto:
        self._type_public(self.model.graph.input)
        for item in self.model.graph.input:
            if item.name in self.floats:
                self.present[item.name] = item.type.tensor_type.elem_type
        for node in list(self.model.graph.node):
            self._rewrite(node)
        self._type_public(self.model.graph.output)
        self._finish_outputs()
        set_nodes(self.model, self.nodes)
        del self.model.graph.value_info[:]
        drop_dead(self.model)
        return self.model

    def _type_public(self, infos: Any) -> None:
        for item in infos:
            if item.name in self.between and item.name in self.floats:
                item.type.tensor_type.elem_type = HALF

    def _rewrite(self, node: onnx.NodeProto) -> None:
        if any(item.type == onnx.AttributeProto.GRAPH for item in node.attribute):
            raise ExportError(
                f"node {node.name} ({node.op_type}) holds a subgraph", expected="a graph without If, Loop or Scan"
            )
        wanted = FLOAT if node.name in self.islands else HALF
        fixed = _FLOAT_ONLY_INPUTS.get(node.op_type, set())
        for i, name in enumerate(node.input):
            if name in self.floats:
                node.input[i] = self._as(name, FLOAT if i in fixed else wanted, node)
        if wanted == HALF:
            _halve_attributes(node)
        for name in node.output:
            if name in self.floats:
                self.present[name] = wanted
        self.nodes.append(node)

    def _as(self, name: str, wanted: int, reader: onnx.NodeProto) -> str:
        """Name of a tensor that holds `name` in the type `wanted`, cast where it must be."""
        if name in self.weights:
            return name if wanted == FLOAT else self._half_weight(name, reader)
        if self.present[name] == wanted:
            return name
        if (name, wanted) not in self.casts:
            suffix = "fp16" if wanted == HALF else "fp32"
            result = f"{name}.{suffix}"
            self.nodes.append(
                onnx.helper.make_node("Cast", [name], [result], name=f"{name.replace(':', '/')}/to_{suffix}", to=wanted)
            )
            self.casts[name, wanted] = result
        return self.casts[name, wanted]

    def _half_weight(self, name: str, reader: onnx.NodeProto) -> str:
        if (name, HALF) not in self.casts:
            value = numpy_helper.to_array(self.weights[name])
            half = numpy_helper.from_array(checked_half(value, name, reader.name), f"{name}.fp16")
            self.model.graph.initializer.append(half)
            self.casts[name, HALF] = half.name
        return self.casts[name, HALF]

    def _finish_outputs(self) -> None:
        """A graph output keeps its name and gets its contract's type."""
        for item in self.model.graph.output:
            wanted = item.type.tensor_type.elem_type
            if item.name not in self.floats or self.present.get(item.name, wanted) == wanted:
                continue
            inner = f"{item.name}.fp32" if wanted == HALF else f"{item.name}.fp16"
            for node in self.nodes:
                for names in (node.output, node.input):
                    for i, name in enumerate(names):
                        if name == item.name:
                            names[i] = inner
            self.nodes.append(onnx.helper.make_node("Cast", [inner], [item.name], name=f"{item.name}/cast", to=wanted))


def checked_half(value: NDArray[Any], name: str, reader: str) -> NDArray[np.float16]:
    """`value` in half precision. Infinities (masks) pass.

    Raises:
        ExportError: a finite value that half precision cannot hold, or NaN.
    """
    finite = value[np.isfinite(value)]
    largest = float(np.abs(finite).max(initial=0.0))
    if np.isnan(value).any() or largest > HALF_MAX:
        found = "NaN" if np.isnan(value).any() else f"{largest:g}"
        raise ExportError(
            f"weight {name} of {reader} holds {found}",
            expected=f"finite values of at most {HALF_MAX:g}, the range of fp16",
            remedy="name the node in fp32_nodes of the stage contract, or export with precision fp32",
        )
    return value.astype(np.float16)


def _halve_attributes(node: onnx.NodeProto) -> None:
    """Casts to float become casts to half; constants made in place likewise."""
    for item in node.attribute:
        if node.op_type == "Cast" and item.name == "to" and item.i == FLOAT:
            item.i = HALF
        if node.op_type == "ConstantOfShape" and item.name == "value" and item.t.data_type == FLOAT:
            value = checked_half(numpy_helper.to_array(item.t), "value", node.name)
            item.t.CopyFrom(numpy_helper.from_array(value))
