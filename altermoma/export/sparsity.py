"""Which products of exported graphs can run on sparse tensor cores, which do hold 2:4 weights, and why others do not.

Read from the graphs, after folding and in the orientation in which TensorRT counts: fours of input channels for every
output and kernel position of a convolution, fours of rows of a matrix that is multiplied from the right. Whether
TensorRT then picks a sparse kernel is its own choice, by time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from altermoma.errors import ExportError
from altermoma.export.contract import ModelContract, StageContract
from altermoma.export.graph import attribute, copy_model, dims_of, initializers, producers, value_types
from altermoma.export.passes.islands import fp32_islands
from altermoma.pruning.two_four_rules import FOUR, FULL_PRECISION, GROUPED, TRANSPOSED, WidthRule, too_narrow

ACTIVATIONS = "multiplies activations with each other"
_PASSING = frozenset({"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"})
"""What may stand between a weight and its product without moving or making zeros (zero points of weights are 0)."""
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})

Graphs = Mapping[str, onnx.ModelProto]


@dataclass(frozen=True, kw_only=True)
class LayerSparsity:
    """One product of a graph.

    Attributes:
        inputs, outputs: channels of a convolution; rows and columns of a matrix.
        positions: of the kernel; 1 for a matrix.
        flops: 2 x MACs on the reference frame, padding of gather tables included.
        two_four: whether its weights hold the pattern.
        obstacle: why it stays dense; empty where it takes the pattern.
    """

    stage: str
    node: str
    operator: str
    inputs: int
    outputs: int
    positions: int
    flops: float
    two_four: bool
    obstacle: str

    @property
    def eligible(self) -> bool:
        return not self.obstacle


@dataclass(frozen=True, kw_only=True)
class SparsityReport:
    """All products of a model's stages, and what was asked for: "dense" or "2:4" by a rule on widths."""

    asked: str
    rule: WidthRule
    layers: tuple[LayerSparsity, ...]

    def share(self, *, two_four: bool = False) -> float:
        """Share of the FLOPs of all products that are eligible, or that hold the pattern as well."""
        whole = sum(layer.flops for layer in self.layers)
        found = sum(layer.flops for layer in self.layers if layer.eligible and (layer.two_four or not two_four))
        return found / whole if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "rule": self.rule,
            "eligible_flops": self.share(),
            "two_four_flops": self.share(two_four=True),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }


def sparsity_report(
    graphs: Graphs, contract: ModelContract, arrays: Mapping[str, NDArray[Any]], *, rule: WidthRule, asked: str
) -> SparsityReport:
    """Reads the fp32 graphs of a model.

    Args:
        graphs: by stage name.
        contract: of the model; its islands of fp32 have no sparse kernels.
        arrays: every stage input of the reference frame, which sizes the FLOPs.
        rule: how wide a product must be.
        asked: "dense" or "2:4".

    Raises:
        ExportError: a graph that contradicts itself.
    """
    sizes: dict[str, int] = {}
    for stage in contract.stages:
        for spec in stage.inputs:
            contract.check_array(spec, arrays[spec.name], sizes)
    layers = [layer for stage in contract.stages for layer in read_stage(graphs[stage.name], stage, sizes, rule)]
    return SparsityReport(asked=asked, rule=rule, layers=tuple(layers))


def read_stage(
    graph: onnx.ModelProto, stage: StageContract, sizes: Mapping[str, int], rule: WidthRule
) -> list[LayerSparsity]:
    """The products of one stage's fp32 graph, in order. Products of one module stand or fall together: they may share
    its weights, as the segments of a sparse convolution do.
    """
    shapes = _shapes(graph, sizes)
    islands = fp32_islands(graph, stage)
    weights = dict(product_weights(graph))
    found = []
    for node in graph.graph.node:
        if node.op_type in _PRODUCTS:
            product = _product(node, weights.get(node.name), shapes, rule)
            full = FULL_PRECISION if node.name in islands and node.name in weights else ""
            found.append(dataclasses.replace(product, stage=stage.name, obstacle=full or product.obstacle))
    shared: dict[str, str] = {}
    for layer in found:
        if layer.obstacle and layer.node in weights:
            shared.setdefault(_module(layer.node), layer.obstacle)
    return [
        dataclasses.replace(layer, obstacle=layer.obstacle or shared.get(_module(layer.node), "")) for layer in found
    ]


def _module(node: str) -> str:
    return node.rpartition("/")[0] or node


def _shapes(graph: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Shape of every tensor with the axes at these sizes; tensors whose shape does not follow are left out."""
    twin = copy_model(graph)
    for info in twin.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    for info in twin.graph.output:
        info.type.tensor_type.ClearField("shape")
    known = {name: dims_of(tensor) for name, tensor in value_types(twin).items()}
    found = {name: list(item.dims) for name, item in initializers(graph).items()}
    for name, dims in known.items():
        if dims is not None and all(isinstance(dim, int) for dim in dims):
            found[name] = [int(dim) for dim in dims if isinstance(dim, int)]
    return found


def product_weights(graph: onnx.ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Node name and weights of every product that has constant ones, input channels on axis 1, outputs on axis 0."""
    constants, makers = initializers(graph), producers(graph)
    for node in graph.graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        name = node.input[1]
        while name not in constants and name in makers and makers[name].op_type in _PASSING:
            name = makers[name].input[0]
        if name in constants:
            weight = numpy_helper.to_array(constants[name])
            across = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
            swapped = across or node.op_type == "ConvTranspose"
            yield node.name, np.swapaxes(weight, *((-1, -2) if across else (0, 1))) if swapped else weight


def _product(
    node: onnx.NodeProto, weight: NDArray[Any] | None, shapes: Mapping[str, list[int]], rule: WidthRule
) -> LayerSparsity:
    made, read = shapes.get(node.output[0]), shapes.get(node.input[0])
    if made is None or read is None:
        raise ExportError(f"the shape of {node.name} does not follow from the reference frame's inputs")
    transposed, groups = node.op_type == "ConvTranspose", int(attribute(node, "group", 1))
    if weight is None:
        outputs, inputs, kernel = made[-1], read[-1], ()
        obstacle = ACTIVATIONS
    else:
        outputs, inputs, *kernel = weight.shape[-2:] if node.op_type == "MatMul" else weight.shape  # type: ignore[assignment]
        narrow = too_narrow(rule, inputs=inputs, outputs=outputs, positions=math.prod(kernel))
        obstacle = TRANSPOSED if transposed else GROUPED if groups > 1 else narrow
    each = math.prod(read) * outputs if transposed else math.prod(made) * inputs
    return LayerSparsity(
        stage="",
        node=node.name,
        operator=node.op_type,
        inputs=inputs,
        outputs=outputs,
        positions=math.prod(kernel),
        flops=2.0 * each * math.prod(kernel),
        two_four=weight is not None and holds_two_four(weight),
        obstacle=obstacle,
    )


def holds_two_four(weight: NDArray[Any]) -> bool:
    """Whether no four of input channels, on axis 1 of [outputs, inputs, *kernel], has more than two weights."""
    inputs = weight.shape[1]
    if inputs % FOUR:
        return False
    fours = (np.moveaxis(weight, 1, -1) != 0).reshape(-1, FOUR)
    return bool((fours.sum(axis=1) <= FOUR // 2).all())


def require_two_four(report: SparsityReport, graphs: Mapping[str, Graphs]) -> None:
    """Holds every precision's graphs against what was asked for.

    Args:
        report: of the fp32 graphs; where it asks for dense weights, anything will do.
        graphs: precision -> stage -> graph.

    Raises:
        ExportError: weights that should be 2:4 and are not, by the names of their nodes.
    """
    if report.asked != "2:4":
        return
    faults = [line for precision, stages in graphs.items() for line in _faults(report.layers, precision, stages)]
    if not any(layer.eligible for layer in report.layers):
        faults = [f"no product takes 2:4 under the rule {report.rule!r}"]
    if faults:
        raise ExportError(
            "2:4 sparsity was asked for, but not all weights have it:\n  " + "\n  ".join(faults),
            expected="at most two weights in each four input channels of every eligible product",
            remedy="make the checkpoint with --sparsity 2:4 (altermoma prune, altermoma-export) and the same "
            "prune.two_four_rule, or export with --sparsity dense",
        )


def _faults(layers: Sequence[LayerSparsity], precision: str, stages: Graphs) -> Iterator[str]:
    for name, graph in stages.items():
        weights = dict(product_weights(graph))
        for layer in layers:
            if layer.stage != name or not layer.eligible:
                continue
            if layer.node not in weights:
                yield f"{name}, {precision}: no node {layer.node} with constant weights"
            elif not holds_two_four(weights[layer.node]):
                yield f"{name}, {precision}: {layer.node} has more than two weights in four input channels"
