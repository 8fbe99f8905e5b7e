"""Which number formats a graph computes in beside fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from altermoma.errors import ExportError

PRECISIONS = {
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT8E5M2: "fp8",
    onnx.TensorProto.INT4: "int4",
}
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")

FP8_CHANNELS = 16
FP8_WINDOW = 32
"""Channels on either side that an FP8 convolution needs more of, and other products as many; cells of its window."""


def beyond_fp8(op: str, weight: Sequence[int], axis: int) -> bool:
    """Whether TensorRT has no FP8 kernel, or none worth its pairs, for a product by weights of these dimensions.

    Args:
        op: of the product.
        weight: dimensions of its constant.
        axis: of the output channels in it.
    """
    window = math.prod(weight[2:]) if op == "Conv" else 1
    outputs = weight[axis]
    inputs = math.prod(weight) // (outputs * window)
    return min(inputs, outputs) < FP8_CHANNELS + (op == "Conv") or window > FP8_WINDOW


def quantised_numbers(model: onnx.ModelProto) -> str:
    """What the quantisers of a graph round to, told by their zero points: "int8" or "fp8"; empty where it has none.

    Raises:
        ExportError: several formats in one graph, which no engine can be held to.
    """
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    zeros = {node.input[2] for node in model.graph.node if node.op_type in QUANTISERS and len(node.input) > 2}
    # Biases of ONNX Runtime's graphs are int32 behind a dequantiser, which is no format that is computed in.
    found = sorted({PRECISIONS[kinds[name]] for name in zeros if kinds.get(name) in PRECISIONS})
    if len(found) > 1:
        raise ExportError(
            f"graph {model.graph.name} quantises to {' and '.join(found)}", expected="one number format in each stage"
        )
    return found[0] if found else ""
