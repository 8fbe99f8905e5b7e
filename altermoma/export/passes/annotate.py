"""Writes into a graph what a reader of the file needs: where it comes from, shapes, meanings and units."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from altermoma.export.contract import StageContract
from altermoma.export.graph import copy_model, infer_shapes


def annotate(model: onnx.ModelProto, contract: StageContract, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Adds metadata, the meaning and unit of inputs and outputs, and the shapes of all inner tensors."""
    model = infer_shapes(copy_model(model))
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
