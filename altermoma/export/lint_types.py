"""Lint rules for what tensors hold and how large they are.

Sources: convertDtype and convertOnnxWeights of onnx-tensorrt (onnx2trt_utils.cpp 8.5 and 8.6, importerUtils.cpp 10.1),
NvInfer.h and NvInferRuntimeBase.h of TensorRT 8.6 and 10.3, its release notes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from altermoma.export.graph import dims_of
from altermoma.export.lint import Finding, Rule, Subject
from altermoma.export.numbers import QUANTISERS

_MAX_RANK = 8
"""Dims::MAX_DIMS."""

_MAX_VOLUME = 2**31 - 1
"""Elements of an ITensor; most layers of 10.10 and later take more (its release notes)."""

_UNREAD = frozenset(
    {"int16", "uint16", "uint32", "uint64", "complex64", "complex128", "object", "float8_e5m2", "float8_e4m3fnuz"}
)
"""Types of constants that no parser takes."""

_LATE = frozenset({"bfloat16", "float8_e4m3fn", "int4"})
"""Types of constants that parsers take from 10.0 on."""


def tensor_types(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """Element types that this version lacks or narrows."""
    narrowed: dict[int, str] = {onnx.TensorProto.DOUBLE: "float64"}
    if subject.version < (10, 0):
        narrowed[onnx.TensorProto.BFLOAT16] = "bfloat16"
    for name in node.output:
        found = narrowed.get(subject.elem_type(name))
        if found:
            message = f"computes {found}, which this version lacks or narrows"
            yield subject.finding("error", "element-type", node.name, message, "compute in float32 or float16")


def int64_constants(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """Large int64 constants are clamped to int32; as bounds of a slice ("to the end") that is harmless."""
    if subject.version >= (10, 0) or node.op_type == "Slice":
        return
    limit = np.iinfo(np.int32)
    for name in node.input:
        value = subject.constants.get(name)
        if value is None or value.dtype != np.int64 or not value.size:
            continue
        if value.max() > limit.max or value.min() < limit.min:
            message = f"constant {name} is clamped to int32"
            yield subject.finding("error", "int64-clamp", node.name, message, "use numbers that fit into int32")


def constant_types(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """Constants of types that this parser does not take."""
    for name in node.input:
        value = subject.constants.get(name)
        kind = value.dtype.name if value is not None else ""
        if kind in _UNREAD or (kind in _LATE and subject.version < (10, 0)):
            message = f"constant {name} holds {kind}, which this version does not read"
            yield subject.finding("error", "constant-type", node.name, message, "store it as float32, float16 or int32")


def int8_constants(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """Up to 9.x, int8 is stored for a DequantizeLinear alone.

    "Int8 constant is only allowed before DQ node" (libnvinfer 8.6.0; 8.5.2 checks it too, NVIDIA/TensorRT#3385).
    Before 8.5 weights could not be int8 at all (#2163, 8.4.1).
    """
    if subject.version >= (10, 0):
        return
    for i, name in enumerate(node.input):
        value = subject.constants.get(name)
        if value is None or value.dtype != np.int8 or (node.op_type in QUANTISERS and i in (0, 2)):
            continue
        message = f"constant {name} is stored as int8, which this version takes before DequantizeLinear only"
        yield subject.finding("error", "int8-constant", node.name, message, "dequantise it first")


def tensor_sizes(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """Ranks and, where all sizes are fixed, numbers of elements beyond what a tensor may have."""
    for name in node.output:
        tensor = subject.types.get(name)
        dims = dims_of(tensor) if tensor is not None else None
        if dims is None:
            continue
        if len(dims) > _MAX_RANK:
            message = f"{name} has {len(dims)} dimensions"
            yield subject.finding("error", "tensor-rank", node.name, message, f"use {_MAX_RANK} at most")
        sizes = [size for size in dims if isinstance(size, int)]
        if len(sizes) == len(dims) and math.prod(sizes) > _MAX_VOLUME and subject.version < (10, 10):
            message = f"{name} has {math.prod(sizes):,} elements".replace(",", " ")
            yield subject.finding("error", "tensor-volume", node.name, message, "split it: 2 147 483 647 are the most")


TYPE_RULES: tuple[Rule, ...] = (tensor_types, int64_constants, constant_types, int8_constants, tensor_sizes)
