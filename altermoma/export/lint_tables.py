"""What each TensorRT version's ONNX parser takes. Operators: docs/operators.md of onnx-tensorrt at the release tags
8.5, 8.6, 9.3, 10.0 and 10.1; later ones: release notes and documentation of TensorRT."""

from __future__ import annotations

import re

from altermoma.errors import RecipeError

Version = tuple[int, int]

_OPERATORS_8_5 = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip
    Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum
    Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity If
    InstanceNormalization IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul
    Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign Round Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
    Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
"""
SINCE_8_5 = frozenset(_OPERATORS_8_5.split())

ADDED: tuple[tuple[Version, frozenset[str]], ...] = (
    ((8, 6), frozenset({"GroupNormalization", "IsInf", "LayerNormalization"})),
    ((9, 0), frozenset({"CastLike", "Hardmax"})),
    ((10, 0), frozenset({"Gelu", "Mish"})),
    ((10, 1), frozenset({"DeformConv"})),
    ((10, 14), frozenset({"Attention"})),
    ((10, 15), frozenset({"RotaryEmbedding", "RMSNormalization"})),
    ((11, 0), frozenset({"Swish"})),
)

MAX_OPSET: tuple[tuple[Version, int], ...] = (
    ((8, 5), 17),
    ((9, 0), 19),
    ((10, 0), 20),
    ((10, 14), 24),
)
"""Highest operator set by the parser's documentation. The parsers of 8.x and 9.x do not check it: they read later
graphs with the old meaning. 10.2 to 10.13 are held to 10.0's, as no documentation of theirs was found."""

IRREGULAR: dict[str, str] = {
    "NonZero": "gather through an index table that the host builds",
    "Unique": "gather through an index table that the host builds",
    "Compress": "gather through an index table that the host builds",
    "NonMaxSuppression": "suppress on the host, after decoding",
    "Loop": "unroll it at export",
    "Scan": "unroll it at export",
    "If": "decide it at export; trace the module in eval mode",
    "Dropout": "export the module in eval mode",
}
"""Operators with results of unknown size, or with control flow: one stage's shapes must follow from its inputs'."""

_DLA = """
    Add AveragePool BatchNormalization Clip Concat Constant Conv ConvTranspose Flatten Gemm Identity LeakyRelu LRN
    MatMul Max MaxPool Min Mul PRelu Relu Reshape Resize Sigmoid Slice Softmax Split Squeeze Sub Tanh Transpose
    Unsqueeze Upsample
"""
DLA_OPERATORS = frozenset(_DLA.split())
"""What Orin's accelerator runs by itself with TensorRT 8.5 and 8.6 (NVIDIA/Deep-Learning-Accelerator-SW, operators),
within limits of its own on sizes and attributes. Matrix products want a constant second factor."""


def supported_operators(version: Version) -> frozenset[str]:
    """Standard operators that the parser of this TensorRT version imports."""
    found = SINCE_8_5
    for since, operators in ADDED:
        if version >= since:
            found |= operators
    return found


def max_opset(version: Version) -> int:
    return max(opset for since, opset in MAX_OPSET if version >= since)


def parse_version(text: str) -> Version:
    """Major and minor of a TensorRT version such as `8.6`, `10.3.0.30`, `10.x` (read as 10.0) or `11`.

    Raises:
        RecipeError: not a version, or one before 8.5.
    """
    match = re.fullmatch(r"(\d+)(?:\.(\d+|x)(?:\.[\w.]+)?)?", text.strip())
    if match is None:
        raise RecipeError(f"TensorRT version {text!r}", expected="a version such as 8.6, 10.3 or 11")
    minor = match[2] or "0"
    version = int(match[1]), 0 if minor == "x" else int(minor)
    if version < (8, 5) and version != (8, 0):
        raise RecipeError(f"TensorRT version {text!r}", expected="8.5 or later")
    return max(version, (8, 5))
