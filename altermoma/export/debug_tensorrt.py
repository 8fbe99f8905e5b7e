"""Where an engine leaves the fp32 graph: TensorRT builds it with some inner tensors as outputs, closing in on the
first that is off.

An output ends a fusion, so that an engine with many of them is not the engine that failed. Few are marked at a time,
evenly spread; the stretch before the first that is off is looked at next. Should a layer leave the tolerance and a
later one return to it between two marks, it is not seen. Engines choose for themselves: behind a choice (top-k, a
comparison) a near tie may be what is found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.deploy.manifest import StageRecord, TensorSpec
from altermoma.export.debug_precision import Diagnosis, LayerError, first_beyond, layer_error
from altermoma.export.graph import HALF, value_types
from altermoma.export.taps import Arrays, Pair, evaluate, paired, tapped

MARKS = 8
"""Inner tensors that become outputs of one engine."""

RunEngine = Callable[[bytes, StageRecord, Arrays], Arrays]
"""Builds an engine of a graph and runs it once."""


def diagnose_engine(  # noqa: PLR0913 - two graphs, what feeds them, and what to call them
    wanted: onnx.ModelProto,
    found: onnx.ModelProto,
    feeds: Mapping[str, NDArray[Any]],
    run_engine: RunEngine,
    *,
    record: StageRecord,
    engine: str,
    tolerance: float,
) -> Diagnosis:
    """Compares layers of an engine with their twins in fp32 on ONNX Runtime until the first that is off is found.

    Args:
        wanted: the fp32 graph.
        found: the graph that engines are built of.
        feeds: the stage's inputs.
        run_engine: builds and runs.
        record: contract of the stage.
        engine: precision of `found`.
        tolerance: largest allowed difference.

    Raises:
        EngineError: an engine does not build or run.
        ExportError: the fp32 graph does not run.
    """
    pairs = paired(wanted, found)
    seen: dict[str, LayerError] = {}
    stretch: Sequence[Pair] = pairs
    first: LayerError | None = None
    while stretch:
        some = _spread(stretch)
        want = evaluate(tapped(wanted, [p.wanted for p in some]), feeds)
        graph, fixed = _frozen(found, some, want, feeds, record)
        got = run_engine(graph, fixed, dict(feeds))
        looked_at = [layer_error(p, want[p.wanted], got[p.found]) for p in some]
        seen |= {layer.tensor: layer for layer in looked_at}
        beyond = first_beyond(looked_at, tolerance)
        if beyond is None:
            # Nothing between the marks is looked at where all of them are well: the stage's outputs are the last.
            break
        first = beyond
        stretch = _before(stretch, some, beyond)
    order = [p.found for p in pairs]
    layers = tuple(seen[name] for name in order if name in seen)
    return Diagnosis(
        stage=record.name, engine=engine, backend="tensorrt", tolerance=tolerance, layers=layers, first=first
    )


def _spread(stretch: Sequence[Pair]) -> list[Pair]:
    """Evenly, the last one always among them."""
    places = np.linspace(0, len(stretch) - 1, min(MARKS, len(stretch)) + 1)[1:] if len(stretch) > MARKS else None
    if places is None:
        return list(stretch)
    return [stretch[int(place)] for place in np.unique(places.round().astype(int))]


def _before(stretch: Sequence[Pair], some: Sequence[Pair], beyond: LayerError) -> Sequence[Pair]:
    """Layers between the last mark that is well and the first that is not, both left out."""
    order = [p.found for p in stretch]
    marks = [order.index(p.found) for p in some]
    place = order.index(beyond.tensor)
    earlier = [mark for mark in marks if mark < place]
    return stretch[(max(earlier) + 1 if earlier else 0) : place]


def _frozen(
    found: onnx.ModelProto,
    some: Sequence[Pair],
    want: Mapping[str, NDArray[Any]],
    feeds: Mapping[str, NDArray[Any]],
    record: StageRecord,
) -> tuple[bytes, StageRecord]:
    """The graph for this frame's sizes alone, with marked outputs, and a contract that says so."""
    model = tapped(found, [p.found for p in some])
    types = value_types(model)
    inputs = tuple(dataclasses.replace(spec, shape=np.shape(feeds[spec.name])) for spec in record.inputs)
    outputs = {spec.name: dataclasses.replace(spec, shape=want[spec.name].shape) for spec in record.outputs}
    for p in some:
        dtype = "float16" if types[p.found].elem_type == HALF else "float32"
        outputs.setdefault(p.found, TensorSpec(name=p.found, dtype=dtype, shape=want[p.wanted].shape))
    sizes = {spec.name: spec.shape for spec in (*inputs, *outputs.values())}
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.ClearField("shape")
        for size in sizes[item.name]:
            item.type.tensor_type.shape.dim.add().dim_value = int(size)
    fixed = StageRecord(name=record.name, file=record.file, inputs=inputs, outputs=tuple(outputs.values()))
    return model.SerializeToString(), fixed
