"""Where a graph of narrower precision leaves its fp32 twin: layer by layer, and the first layer by name.

Every layer's result is held against that of the same node in the fp32 graph, on the bundle's reference frame. Two
measures: how far the result is off with all errors before it (`difference`), and how far the layer takes it off by
itself, fed with the fp32 graph's own numbers (`own`). A layer that is to blame shows in both; errors that only add up
show in the first alone. Choices (top-k, comparisons) are those of fp32; where others would have been taken is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.export.graph import HALF, value_types
from altermoma.export.passes.emulate_half import emulate_half
from altermoma.export.taps import Arrays, Pair, alone, chunks, decisions, evaluate, given, paired, tapped
from altermoma.progress import track

TAPS = 16
"""Inner tensors that are looked at in one run: all of them at full size would not fit into memory."""

Evaluate = Callable[[Sequence[Pair]], Mapping[str, NDArray[Any]]]
"""Gives the results of some layers by the names of their tensors in the graph that is looked at."""


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """One layer's result against that of the fp32 graph.

    Attributes:
        difference: largest absolute difference over the largest magnitude in fp32; infinite where the result is not
            finite though fp32's is.
        magnitude: largest absolute number in fp32.
        own: the same as `difference` for the layer alone; None where it was not asked for.
    """

    node: str
    op: str
    tensor: str
    difference: float
    magnitude: float
    own: float | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found out about a stage.

    Attributes:
        layers: in order.
        first: the first that leaves the tolerance, with its `own` difference.
        turned: comparisons and choices of the best that come out otherwise, with the share of their answers. All
            behind them is looked at with fp32's choices: one near tie would make every later layer look wrong.
    """

    stage: str
    engine: str
    backend: str
    tolerance: float
    layers: tuple[LayerError, ...] = ()
    first: LayerError | None = None
    turned: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        if self.first is None:
            worst = max((layer.difference for layer in self.layers), default=0.0)
            return f"{self.stage} {self.engine} on {self.backend}: every layer stays within {self.tolerance:.0e}" + (
                f", the worst is off by {worst:.1e}"
            )
        first = self.first
        off = "is not finite" if np.isinf(first.difference) else f"is off by {first.difference:.1e}"
        text = (
            f"{self.stage} {self.engine} on {self.backend}: {first.node} ({first.op}) is the first layer beyond"
            f" {self.tolerance:.0e}: its result {off}, largest number in fp32 {first.magnitude:.3g}"
        )
        if first.own is None:
            return text
        if first.own > self.tolerance:
            return f"{text}; alone, on fp32's own numbers, it is as bad: this layer is to blame"
        return f"{text}; alone it is off by {first.own:.1e} only: the error was carried in from the layers before"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        record = dataclasses.asdict(self) | {"verdict": self.verdict}
        return dict(_finite(record))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def diagnose(
    wanted: onnx.ModelProto,
    found: onnx.ModelProto,
    feeds: Mapping[str, NDArray[Any]],
    *,
    stage: str,
    engine: str,
    tolerance: float,
) -> Diagnosis:
    """Compares every layer of a graph with its twin in fp32 on ONNX Runtime, roundings of half precision written out.

    Args:
        wanted: the fp32 graph.
        found: the same stage in another precision.
        feeds: the stage's inputs.
        stage: for messages.
        engine: precision of `found`.
        tolerance: largest allowed `difference`.

    Raises:
        ExportError: a graph does not run.
    """
    pairs = paired(wanted, found)
    found, feeds, turned = _decided(wanted, found, feeds)
    rounded = emulate_half(found)
    spell = _spelling(rounded)
    layers: list[LayerError] = []
    for some in track(list(chunks(pairs, TAPS)), f"Layers of {stage}"):
        want = evaluate(tapped(wanted, [p.wanted for p in some], only=True), feeds)
        got = evaluate(tapped(rounded, [spell(p.found) for p in some], only=True), feeds)
        layers += [layer_error(p, want[p.wanted], got[spell(p.found)]) for p in some]
    first = first_beyond(layers, tolerance)
    if first is not None:
        own = own_error(wanted, found, pairs, first.tensor, feeds)
        first = dataclasses.replace(first, own=own)
    return Diagnosis(
        stage=stage,
        engine=engine,
        backend="onnxruntime",
        tolerance=tolerance,
        layers=tuple(layers),
        first=first,
        turned=turned,
    )


def _decided(
    wanted: onnx.ModelProto, found: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]
) -> tuple[onnx.ModelProto, Mapping[str, NDArray[Any]], dict[str, float]]:
    """The graph with the choices of the fp32 graph; the share of each that it would have taken otherwise."""
    chosen = decisions(wanted, found)
    if not chosen:
        return found, feeds, {}
    theirs = evaluate(tapped(wanted, [p.wanted for p in chosen], only=True), feeds)
    ours = evaluate(emulate_half(tapped(found, [p.found for p in chosen], only=True)), feeds)
    turned = {p.node: float((theirs[p.wanted] != ours[p.found]).mean()) for p in chosen}
    more = {p.found: theirs[p.wanted] for p in chosen}
    return given(found, more), {**feeds, **more}, {name: share for name, share in turned.items() if share}


def layer_error(pair: Pair, want: NDArray[Any], got: NDArray[Any]) -> LayerError:
    """Infinities that fp32 has as well (masks) count as equal."""
    left, right = want.astype(np.float64), got.astype(np.float64)
    magnitude = float(np.abs(left[np.isfinite(left)]).max(initial=0.0))
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(left - right))
    largest = float("inf") if not np.isfinite(off).all() else float(off.max(initial=0.0))
    difference = largest / max(magnitude, 1e-12)
    return LayerError(node=pair.node, op=pair.op, tensor=pair.found, difference=difference, magnitude=magnitude)


def first_beyond(layers: Sequence[LayerError], tolerance: float) -> LayerError | None:
    return next((layer for layer in layers if not layer.difference <= tolerance), None)


def own_error(
    wanted: onnx.ModelProto,
    found: onnx.ModelProto,
    pairs: Sequence[Pair],
    tensor: str,
    feeds: Mapping[str, NDArray[Any]],
) -> float:
    """`difference` of one layer that is fed with what the fp32 graph feeds it with.

    Raises:
        ExportError: a graph does not run.
    """
    pair = next(p for p in pairs if p.found == tensor)
    known = {p.found: p.wanted for p in pairs if p.found != tensor}
    part = alone(found, tensor, set(known))
    needed = {item.name: known[item.name] for item in part.graph.input if item.name in known}
    truth = evaluate(tapped(wanted, [pair.wanted, *needed.values()], only=True), feeds)
    halves = {item.name for item in part.graph.input if item.type.tensor_type.elem_type == HALF}
    # The part keeps the types of the graph; emulation then reads rounded numbers at its rim.
    rim: Arrays = {n: truth[of].astype(np.float16) if n in halves else truth[of] for n, of in needed.items()}
    (got,) = evaluate(emulate_half(part), {**feeds, **rim}).values()
    return layer_error(pair, truth[pair.wanted], got).difference


def _spelling(rounded: onnx.ModelProto) -> Callable[[str], str]:
    """Names of tensors in the graph with its roundings written out: those of half-precision outputs are inner there."""
    known = set(value_types(rounded))
    return lambda name: name if name in known else f"{name}.rounded"
