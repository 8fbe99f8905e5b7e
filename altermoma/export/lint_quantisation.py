"""Lint rules for explicit quantisation: where TensorRT fuses Q/DQ pairs into int8 layers, and where they only cost.

Sources: TensorRT developer guide, "Q/DQ layer-placement recommendations" (quantise all inputs of weighted operations,
not their outputs; quantise the residual input of additions), and docs/operators.md of onnx-tensorrt (pairs need all
three inputs; weights per output channel).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from altermoma.export.graph import attribute
from altermoma.export.lint import Finding, Rule, Subject
from altermoma.export.numbers import FP8_CHANNELS, FP8_WINDOW, beyond_fp8

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


def _dequantiser(subject: Subject, name: str) -> onnx.NodeProto | None:
    maker = subject.makers.get(name)
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def half_quantised(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """A product with int8 data and float weights, or the other way round, computes in float."""
    if node.op_type not in _WEIGHTED:
        return
    data, weight = (_dequantiser(subject, name) is not None for name in node.input[:2])
    if data != weight and (weight or node.input[1] in subject.constants):
        message = f"{node.op_type} has int8 {'data' if data else 'weights'} alone, so that it computes in float"
        yield subject.finding("warning", "half-quantised", node.name, message, "quantise both inputs, or neither")


def quantised_before_relu(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """A pair between a product and its ReLU keeps the three from becoming one kernel."""
    if node.op_type != "Relu":
        return
    pair = _dequantiser(subject, node.input[0])
    if pair is None:
        return
    before = subject.makers.get(pair.input[0])
    source = subject.makers.get(before.input[0]) if before is not None and before.input else None
    if source is not None and source.op_type in (*_WEIGHTED, "BatchNormalization"):
        message = f"a quantiser lies between {source.name} and its ReLU"
        yield subject.finding("error", "pair-before-relu", node.name, message, "quantise behind the ReLU")


def shared_scale(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """What moves int8 numbers moves them at one scale, else every input is rounded anew."""
    if node.op_type not in ("Concat", "Gather", "MaxPool", "Resize", "Reshape", "Transpose", "Slice"):
        return
    names = node.input if node.op_type == "Concat" else node.input[:1]
    pairs = [pair for name in names if (pair := _dequantiser(subject, name)) is not None]
    scales = {_scale(subject, pair) for pair in pairs}
    readers = subject.readers.get(node.output[0], [])
    behind = {_scale(subject, reader) for reader in readers if reader.op_type == "QuantizeLinear"}
    if pairs and len(pairs) < len(names):
        message = "some inputs are int8 and some are float"
        yield subject.finding("warning", "mixed-join", node.name, message, "quantise all of them at one scale")
    if len(scales | behind) > 1 and scales:
        message = f"{node.op_type} joins or moves numbers of {len(scales | behind)} scales"
        yield subject.finding("warning", "scale-not-shared", node.name, message, "give them one scale")


def residual(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """A sum that is rounded: its shortcut should be int8 too, so that the product takes it in."""
    if node.op_type != "Add" or any(name in subject.constants for name in node.input):
        return
    makers = subject.makers
    ends = subject.readers.get(node.output[0], [])
    if len(ends) == 1 and ends[0].op_type == "Relu":
        ends = subject.readers.get(ends[0].output[0], [])
    rounded = bool(ends) and all(end.op_type == "QuantizeLinear" for end in ends)
    sources = [makers.get(name) for name in node.input]
    float_products = [s for s in sources if s is not None and s.op_type in _WEIGHTED]
    if rounded and len(float_products) == len(node.input):
        message = "two products are added in float, and the sum is rounded"
        yield subject.finding("warning", "residual-in-float", node.name, message, "quantise the shortcut")


def weight_axis(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """Scales of weights go by output channels."""
    if node.op_type not in _WEIGHTED or len(node.input) < 2:
        return
    pair = _dequantiser(subject, node.input[1])
    scale = subject.constants.get(pair.input[1]) if pair is not None else None
    if pair is None or scale is None or np.ndim(scale) == 0:
        return
    wanted = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0 if attribute(node, "transB", 0) else 1}
    if attribute(pair, "axis", 1) != wanted[node.op_type]:
        message = f"weights of {node.op_type} are scaled along axis {attribute(pair, 'axis', 1)}"
        yield subject.finding(
            "error", "weight-axis", node.name, message, f"scale them per output channel, axis {wanted[node.op_type]}"
        )


def fp8_kernels(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """There is no FP8 convolution of few channels or of a large window, and none at all before 10.2.

    Sources: NVIDIA/TensorRT#3987 (10.2: no implementation for the first convolution of a ResNet), and what
    find_nodes_from_convs_to_exclude of NVIDIA's Model Optimizer leaves out.
    """
    pair = _dequantiser(subject, node.input[1]) if node.op_type == "Conv" else None
    zero = subject.constants.get(pair.input[2]) if pair is not None and len(pair.input) > 2 else None
    if pair is None or zero is None or not zero.dtype.name.startswith("float8"):
        return
    weight = _quantised_weight(subject, pair)
    if weight is None:
        return
    if subject.version < (10, 2):
        message, remedy = "FP8 convolution, which this version lacks", "use int8"
    elif beyond_fp8("Conv", weight, 0):
        message = f"no FP8 convolution by weights {list(weight)}"
        remedy = f"leave those of {FP8_CHANNELS} channels or less, or more than {FP8_WINDOW} cells, out of FP8"
    else:
        return
    yield subject.finding("error", "fp8-conv", node.name, message, remedy)


def _quantised_weight(subject: Subject, pair: onnx.NodeProto) -> tuple[int, ...] | None:
    """Dimensions of a constant that lies before this dequantiser or before its quantiser."""
    value = subject.constants.get(pair.input[0])
    maker = subject.makers.get(pair.input[0])
    if value is None and maker is not None and maker.input:
        value = subject.constants.get(maker.input[0])
    return value.shape if value is not None else None


def _scale(subject: Subject, pair: onnx.NodeProto) -> float:
    scale = subject.constants.get(pair.input[1])
    return float("nan") if scale is None else float(np.reshape(scale, -1)[0])


QUANTISATION_RULES: tuple[Rule, ...] = (
    half_quantised, quantised_before_relu, shared_scale, residual, weight_axis, fp8_kernels,
)  # fmt: skip
