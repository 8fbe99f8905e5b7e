"""Lint rules for single nodes. Each yields findings for one node under one TensorRT version."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from altermoma.export.graph import attribute, dims_of
from altermoma.export.lint import Finding, Rule, Subject

_INT_TYPES = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
_MAX_TOPK = 3840


def grid_sample(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type != "GridSample" or subject.version >= (11, 2):
        return
    mode = attribute(node, "mode", "linear" if subject.opset >= 20 else "bilinear")
    if mode in ("linear", "cubic"):
        yield subject.finding(
            "error",
            "grid-sample-mode",
            node.name,
            f"GridSample mode {mode!r} is silently computed as nearest",
            f"write it as {'bilinear' if mode == 'linear' else 'bicubic'!r}, with operator set 16 to 19",
        )
    data = subject.types.get(node.input[0])
    dims = dims_of(data) if data is not None else None
    if dims is not None and len(dims) != 4:
        yield subject.finding(
            "error", "grid-sample-rank", node.name, f"GridSample on {len(dims)}-D data", "sample 4-D data"
        )


def scatter_reduction(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type not in ("ScatterElements", "ScatterND"):
        return
    given = attribute(node, "reduction")
    remedy = "gather through a fan-in table and sum, as altermoma.ops does"
    if given not in (None, "none"):
        if subject.version < (10, 0):
            message = f"reduction {given!r} is silently ignored: values overwrite each other"
            yield subject.finding("error", "scatter-reduction", node.name, message, remedy)
        elif node.op_type == "ScatterND":
            message = f"ScatterND with reduction {given!r} is refused"
            yield subject.finding("error", "scatter-reduction", node.name, message, remedy)
        else:
            message = f"ScatterElements with reduction {given!r} needs a plugin"
            yield subject.finding("warning", "scatter-plugin", node.name, message, remedy)
    elif given == "none" and node.op_type == "ScatterND" and (10, 0) <= subject.version < (10, 9):
        message = "ScatterND with a reduction attribute is refused, even 'none'"
        yield subject.finding("error", "scatter-attribute", node.name, message, "remove the attribute")


def reduce_axes(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if not node.op_type.startswith("Reduce") or len(node.input) < 2 or not node.input[1]:
        return
    if node.op_type != "ReduceSum" and subject.version < (10, 0):
        yield subject.finding(
            "error",
            "reduce-axes",
            node.name,
            f"{node.op_type} with axes as an input silently reduces all axes",
            "export with opset 17, where axes are an attribute",
        )
    elif node.input[1] not in subject.constants:
        yield subject.finding(
            "error", "reduce-axes", node.name, "axes that are computed in the graph", "give constant axes"
        )


def top_k(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type != "TopK":
        return
    count = subject.constants.get(node.input[1])
    if count is None:
        yield subject.finding("error", "topk-count", node.name, "K is computed in the graph", "give a constant K")
    elif int(np.max(count)) >= _MAX_TOPK + (subject.version < (10, 0)):
        message = f"K = {int(np.max(count))}"
        yield subject.finding("error", "topk-count", node.name, message, f"take fewer than {_MAX_TOPK} elements")
    if not attribute(node, "sorted", 1) and subject.version >= (10, 0):
        # Importers up to 10.1 give sorted elements all the same; the documentation of 10.0 and later wants sorted = 1.
        yield subject.finding("error", "topk-sorted", node.name, "sorted = 0 is refused", "ask for sorted elements")
    if subject.version < (10, 0) and subject.elem_type(node.input[0]) in _INT_TYPES:
        message = "TopK of whole numbers runs in fp32 and confuses values above 16 777 216"
        if subject.version < (8, 6):
            message = "TopK of whole numbers is refused"
        yield subject.finding("error", "topk-int", node.name, message, "cast to float32 where that is exact")


def arg_max(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type not in ("ArgMax", "ArgMin") or subject.version >= (10, 0):
        return
    if subject.elem_type(node.input[0]) in _INT_TYPES:
        message = f"{node.op_type} of whole numbers is not supported"
        yield subject.finding("error", "argmax-int", node.name, message, "cast to float32 where that is exact")


def constant_inputs(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """Inputs that the parser wants to know while it builds."""
    wanted = {"CumSum": (1,), "OneHot": (1,), "Conv": (1, 2), "ConvTranspose": (1, 2), "InstanceNormalization": (1, 2)}
    if subject.version < (10, 3):
        wanted["Slice"] = (3,)
        wanted["Squeeze"] = wanted["Unsqueeze"] = (1,)
    makers = {name: item.op_type for item in subject.model.graph.node for name in item.output}
    for i in wanted.get(node.op_type, ()):
        name = node.input[i] if i < len(node.input) else ""
        if name and name not in subject.constants and makers.get(name) != "DequantizeLinear":
            message = f"input {i} of {node.op_type} is computed in the graph"
            yield subject.finding("error", "constant-input", node.name, message, "make it a constant")


def quantisation(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    zero = subject.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is None:
        if subject.version < (10, 0) or len(node.input) > 2:
            message = "no constant zero point"
            yield subject.finding("error", "zero-point", node.name, message, "give an int8 zero point of 0")
    elif not (zero.dtype == np.int8 or zero.dtype.name.startswith("float8")) or np.any(zero):
        message = f"zero point {zero.dtype} {zero.reshape(-1)[:3].tolist()}"
        if zero.dtype == np.uint8 and not np.any(zero):
            message = "uint8 with zero point 0 is silently computed as int8: values above 127 are cut off"
        remedy = "use signed int8 with zero point 0 (unsigned activations are for ONNX Runtime only)"
        yield subject.finding("error", "zero-point", node.name, message, remedy)
    scale = subject.constants.get(node.input[1])
    if scale is None or not np.all(scale > 0):
        yield subject.finding("error", "scale", node.name, "scale that is not a positive constant", "calibrate again")
    elif scale.size > 1 and attribute(node, "axis") is None and subject.version < (10, 16):
        # QuantDequantLinearHelper of 8.5 to 10.1 takes axis 0 where none is given, that of 10.16 ONNX's own default.
        message = "several scales and no axis: this version takes axis 0, ONNX means axis 1"
        yield subject.finding("error", "scale-axis", node.name, message, "write the axis down")


def int8_gather(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type not in ("Gather", "GatherElements", "GatherND") or subject.version < (10, 0):
        return
    if subject.elem_type(node.input[0]) in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
        message = f"{node.op_type} of int8 rows is not supported from 10.0 on"
        yield subject.finding("error", "int8-gather", node.name, message, "gather float rows and quantise after it")


def einsum(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type != "Einsum" or subject.version >= (10, 12):
        return
    terms = attribute(node, "equation", "").split("->")[0].replace(" ", "").split(",")
    # Importers of 9.0 and later write an ellipsis out; what a layer does to a letter that comes twice changed in 10.12.
    ellipsis = subject.version < (9, 0) and any("." in term for term in terms)
    if ellipsis or any(len(set(term.replace(".", ""))) != len(term.replace(".", "")) for term in terms):
        message = f"Einsum with {'an ellipsis' if ellipsis else 'a diagonal'}"
        yield subject.finding("error", "einsum", node.name, message, "write it with Transpose and MatMul")


def group_normalization(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    """Operator set 21 made scale and bias one per channel instead of one per group."""
    if node.op_type == "GroupNormalization" and subject.opset >= 21 and subject.version < (10, 9):
        message = "GroupNormalization of operator set 21 is understood from 10.9 on"
        yield subject.finding("error", "group-norm", node.name, message, "export with opset 17, which decomposes it")


def extra_outputs(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type in ("MaxPool", "LayerNormalization") and any(node.output[1:]):
        message = f"{node.op_type} with more than one output"
        yield subject.finding("error", "extra-output", node.name, message, "use its first output only")


def pooling_dilations(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type in ("MaxPool", "AveragePool") and any(d != 1 for d in attribute(node, "dilations", [])):
        yield subject.finding("error", "pool-dilations", node.name, "dilated pooling", "pool without dilation")


def resize(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type != "Resize":
        return
    coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
    known = {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
    if coordinates not in known:
        yield subject.finding(
            "error", "resize", node.name, f"Resize with coordinates {coordinates!r}", "use half_pixel"
        )
    mode = attribute(node, "mode", "nearest")
    if mode not in ("nearest", "linear"):
        yield subject.finding("error", "resize", node.name, f"Resize mode {mode!r}", "use nearest or linear")
    if attribute(node, "antialias", 0):
        yield subject.finding("error", "resize", node.name, "Resize with antialias", "resize on the host")


RULES: tuple[Rule, ...] = (
    grid_sample, scatter_reduction, reduce_axes, top_k, arg_max, constant_inputs, quantisation, int8_gather, einsum,
    group_normalization, extra_outputs, pooling_dilations, resize,
)  # fmt: skip
