"""Writes into a graph what a reader of the file needs: where it comes from, shapes, meanings and units."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from altermoma.export.contract import StageContract
from altermoma.export.graph import attribute, copy_model, dims_of, infer_shapes, initializers


def annotate(model: onnx.ModelProto, contract: StageContract, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Adds metadata, the meaning and unit of inputs and outputs, and the shapes of all inner tensors."""
    model = infer_shapes(copy_model(model))
    _name_appended_rows(model)
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


def _name_appended_rows(model: onnx.ModelProto) -> None:
    """Calls the rows of a tensor with the zero row appended `N0+1`, which inference cannot."""
    infos = {info.name: info.type.tensor_type for info in (*model.graph.input, *model.graph.value_info)}
    constants = initializers(model)
    for node in model.graph.node:
        result = infos.get(node.output[0])
        if node.op_type != "Concat" or result is None or attribute(node, "axis") != 0:
            continue
        sizes = []
        for name in node.input:
            dims = list(constants[name].dims) if name in constants else dims_of(infos[name]) if name in infos else None
            sizes.append(dims[0] if dims else None)
        if None not in sizes and any(isinstance(size, str) for size in sizes):
            result.shape.dim[0].dim_param = "+".join(map(str, sizes))


def _forget_numbered_dimensions(model: onnx.ModelProto) -> None:
    """Names that inference made up (`unk__3`) say nothing."""
    for info in model.graph.value_info:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):
                dim.ClearField("dim_param")
