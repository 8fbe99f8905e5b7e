"""Writes into a graph what a reader of the file needs: where it comes from, shapes, meanings and units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from altermoma.export.contract import StageContract
from altermoma.export.graph import attribute, copy_model, dims_of, infer_shapes, initializers


def annotate(model: onnx.ModelProto, contract: StageContract, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Adds metadata, the meaning and unit of inputs and outputs, and the shapes of all inner tensors."""
    model = infer_shapes(copy_model(model))
    while _name_appended_rows(model) + _name_reshaped_rows(model):
        _forget_numbered_dimensions(model)
        model = infer_shapes(model, keep_known=True)
    _forget_numbered_dimensions(model)
    for info in (*model.graph.input, *model.graph.output):
        spec = contract.tensor(info.name)
        info.doc_string = f"{spec.meaning} [{spec.unit}]"
    model.graph.name = contract.name
    model.graph.doc_string = contract.meaning
    model.producer_name = "altermoma"
    model.producer_version = metadata.get("altermoma_version", "")
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
    return model


def _name_appended_rows(model: onnx.ModelProto) -> int:
    """Calls the rows of a tensor with a zero row appended `N0+1`, which inference cannot; returns how many are new."""
    infos = {info.name: info.type.tensor_type for info in (*model.graph.input, *model.graph.value_info)}
    constants = initializers(model)
    named = 0
    for node in model.graph.node:
        result = infos.get(node.output[0])
        if node.op_type != "Concat" or result is None or attribute(node, "axis") != 0 or _is_known(result.shape.dim[0]):
            continue
        sizes = []
        for name in node.input:
            dims = list(constants[name].dims) if name in constants else dims_of(infos[name]) if name in infos else None
            sizes.append(dims[0] if dims else None)
        if all(isinstance(size, int) or _is_name(size) for size in sizes) and any(map(_is_name, sizes)):
            result.shape.dim[0].dim_param = "+".join(map(str, sizes))
            named += 1
    return named


def _name_reshaped_rows(model: onnx.ModelProto) -> int:
    """Calls the rows of a flattened tensor [192, R1, 32] `192*R1`. Returns how many are new."""
    infos = {info.name: info.type.tensor_type for info in (*model.graph.input, *model.graph.value_info)}
    named = 0
    for node in model.graph.node:
        if node.op_type != "Reshape" or not {node.input[0], node.output[0]} <= infos.keys():
            continue
        unknown = [dim for dim in infos[node.output[0]].shape.dim if not _is_known(dim)]
        size = _product(infos[node.input[0]].shape.dim)
        known = _product([dim for dim in infos[node.output[0]].shape.dim if _is_known(dim)])
        if len(unknown) == 1 and size and known and size[1] and not known[1] and size[0] % known[0] == 0:
            factor = size[0] // known[0]
            unknown[0].dim_param = size[1] if factor == 1 else f"{factor}*{size[1]}"
            named += 1
    return named


def _product(dims: Iterable[onnx.TensorShapeProto.Dimension]) -> tuple[int, str] | None:
    """Factor and axis name ("" where there is none) of a number of elements; None where more than one axis is in it."""
    factor, axis = 1, ""
    for dim in dims:
        if dim.HasField("dim_value"):
            factor *= dim.dim_value
            continue
        times, _, name = dim.dim_param.rpartition("*")
        if axis or not _is_name(name) or "+" in name:
            return None
        factor, axis = factor * int(times or 1), name
    return factor, axis


def _is_known(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return dim.HasField("dim_value") or _is_name(dim.dim_param)


def _is_name(size: object) -> bool:
    """Whether a dimension has a name that inference did not make up."""
    return isinstance(size, str) and bool(size) and not size.startswith("unk__")


def _forget_numbered_dimensions(model: onnx.ModelProto) -> None:
    """Names that inference made up (`unk__3`) say nothing."""
    for info in model.graph.value_info:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):
                dim.ClearField("dim_param")
