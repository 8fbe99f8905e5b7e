"""Small steps that every graph pass needs, on `onnx.ModelProto` in memory."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from altermoma.errors import ExportError

FLOAT, HALF, INT32, INT64 = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {item.name: item for item in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Tensor name -> the node that makes it."""
    return {name: node for node in model.graph.node for name in node.output if name}


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor name -> the nodes that read it (a node twice where it reads it twice)."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            if name:
                readers[name].append(node)
    return readers


def constant_values(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Initialisers and the outputs of Constant nodes as arrays."""
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = constant_of(node)
    return values


def constant_of(node: onnx.NodeProto) -> NDArray[Any]:
    """The value of a Constant node."""
    for item in node.attribute:
        if item.name == "value":
            return numpy_helper.to_array(item.t)
        if item.name in ("value_float", "value_floats"):
            return np.asarray(onnx.helper.get_attribute_value(item), np.float32)
        if item.name in ("value_int", "value_ints"):
            return np.asarray(onnx.helper.get_attribute_value(item), np.int64)
    raise ExportError(f"Constant node {node.name!r} holds no numbers", expected="a tensor, float or int value")


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def redirect(model: onnx.ModelProto, old: str, new: str) -> None:
    """Lets every reader of `old` read `new`."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def set_initializer(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> str:
    """Adds or replaces an initialiser; returns its name."""
    tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
    for item in model.graph.initializer:
        if item.name == name:
            item.CopyFrom(tensor)
            return name
    model.graph.initializer.append(tensor)
    return name


def set_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Replaces the node list."""
    kept = [_copy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    return twin


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def drop_dead(model: onnx.ModelProto) -> None:
    """Removes nodes and initialisers whose results nobody reads."""
    wanted = {item.name for item in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if any(name in wanted for name in node.output):
            kept.append(node)
            wanted.update(name for name in node.input if name)
    set_nodes(model, kept[::-1])
    live = [item for item in model.graph.initializer if item.name in wanted]
    kept_tensors = []
    for item in live:
        twin = onnx.TensorProto()
        twin.CopyFrom(item)
        kept_tensors.append(twin)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept_tensors)


def infer_shapes(model: onnx.ModelProto, *, keep_known: bool = False) -> onnx.ModelProto:
    """A copy with the types and shapes of every tensor, freshly inferred or, with `keep_known`, from what is known.

    Raises:
        ExportError: the graph contradicts itself.
    """
    twin = copy_model(model)
    if not keep_known:
        del twin.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(twin, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"the graph contradicts itself: {error}", expected="consistent types and shapes") from error


def value_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Tensor name -> element type and shape, of inputs, outputs and every inferred tensor."""
    inferred = infer_shapes(model)
    infos = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {item.name: item.type.tensor_type for item in infos}


def dims_of(tensor: onnx.TypeProto.Tensor) -> list[int | str | None] | None:
    """Sizes, names, or None per dimension; None altogether where the rank is unknown."""
    if not tensor.HasField("shape"):
        return None
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        which = dim.WhichOneof("value")
        dims.append(dim.dim_value if which == "dim_value" else dim.dim_param or None)
    return dims


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operator set."""
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx"):
            return int(item.version)
    raise ExportError("the graph imports no standard operator set", expected="ai.onnx, version 17")
