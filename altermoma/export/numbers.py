"""Which number formats a graph computes in beside fp32."""

from __future__ import annotations

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
