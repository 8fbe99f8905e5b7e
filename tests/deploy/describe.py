"""The contract of a toy stage, read from its own graph: exports bring one of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altermoma.deploy.bundle import StageGraph
from altermoma.deploy.manifest import AxisRange, TensorSpec
from altermoma.deploy.onnxruntime_backend import numpy_type, open_session


def describe_graph(
    onnx: bytes,
    *,
    name: str,
    axes: Mapping[str, AxisRange],
    notes: Mapping[str, tuple[str, str]] | None = None,
) -> StageGraph:
    """A stage graph ready for a bundle.

    Args:
        onnx: serialised model whose dynamic dimensions are named.
        name: of the stage, for errors.
        axes: range of every dynamic axis of the model; those that this stage lacks are left out.
        notes: meaning and unit by tensor name.

    Raises:
        BundleError: the graph does not load.
    """
    session = open_session(onnx, name, threads=1)
    described = notes or {}

    def spec(value: Any) -> TensorSpec:
        meaning, unit = described.get(value.name, ("", ""))
        shape = tuple(d if isinstance(d, int | str) else "?" for d in value.shape)
        return TensorSpec(name=value.name, dtype=numpy_type(value.type), shape=shape, meaning=meaning, unit=unit)

    inputs = tuple(spec(value) for value in session.get_inputs())
    outputs = tuple(spec(value) for value in session.get_outputs())
    used = {d for s in (*inputs, *outputs) for d in s.shape if isinstance(d, str)}
    return StageGraph(onnx=onnx, inputs=inputs, outputs=outputs, axes={k: v for k, v in axes.items() if k in used})
