"""What an engine really computes in: the inspector's report and the builder's log, read and held against the wish."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from altermoma.errors import EngineError

_TYPES = {
    "fp32": "fp32",
    "float": "fp32",
    "float32": "fp32",
    "fp16": "fp16",
    "half": "fp16",
    "float16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "float8": "fp8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
_NARROW = frozenset({"fp16", "bf16", "int8", "fp8"})
_WORD = re.compile(r"[a-z]+[0-9]*", re.IGNORECASE)
_SPARSE = re.compile(r"\(Sparsity\).*?(?P<kind>eligible|picked).*?:\s*(?P<layers>.*)$", re.IGNORECASE)
_SPARSE_COUNT = re.compile(
    r"\(Sparsity\)\s*(?P<verb>Found|Chose)\s+(?P<count>\d+)\b[^:]*(?::(?P<layers>.*))?$", re.IGNORECASE
)
"""TensorRT 10 and later count, once per pass, and name layers only sometimes."""
UNNAMED = "not named"


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer after fusion.

    Attributes:
        precisions: types of its inputs and outputs, sorted.
        reads, writes: names of its inputs and outputs with their type; empty where it is not told.
        tactic: name of its kernel, where it is told.
    """

    name: str
    kind: str
    precisions: tuple[str, ...]
    reads: tuple[tuple[str, str], ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    tactic: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineLayers:
    """All layers of an engine, and those that the builder called eligible for and picked for sparse kernels."""

    layers: tuple[EngineLayer, ...]
    sparse_eligible: tuple[str, ...] = ()
    sparse_picked: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


def read_layers(report: str, messages: list[str]) -> EngineLayers:
    """Reads the inspector's JSON of any version from 8.5 and the builder's messages.

    8.6 writes ASCII control characters into its strings, between the ONNX nodes that became one layer
    (NVIDIA/TensorRT#2779), which strict JSON forbids.

    Raises:
        EngineError: the report is no JSON with layers.
    """
    try:
        record = json.loads(report, strict=False)
        layers = tuple(_layer(item) for item in record["Layers"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EngineError(
            f"the engine inspector's report cannot be read: {error!r}", expected="JSON with Layers"
        ) from error
    sparse = _sparse_layers(messages)
    if not sparse["picked"]:
        # The log may be silent (a plan from a cache); kernels of sparse matrices say so in their names.
        sparse["picked"] = [layer.name for layer in layers if "sparse" in layer.tactic.lower()]
    return EngineLayers(
        layers=layers,
        sparse_eligible=tuple(sparse["eligible"]),
        sparse_picked=tuple(sparse["picked"]),
        counts=dict(Counter(p for layer in layers for p in set(layer.precisions))),
    )


def _sparse_layers(messages: Iterable[str]) -> dict[str, list[str]]:
    """Layers that a build called eligible for 2:4 kernels, and those that it picked; UNNAMED where only counted."""
    found: dict[str, list[str]] = {"eligible": [], "picked": []}
    for text in messages:
        counted, named = _SPARSE_COUNT.search(text), _SPARSE.search(text)
        if counted:
            kind = "eligible" if counted["verb"].lower() == "found" else "picked"
            found[kind] = _names(counted["layers"] or "") or [UNNAMED] * int(counted["count"])
        elif named:
            found[named["kind"].lower()] += _names(named["layers"])
    return found


def _names(text: str) -> list[str]:
    return [name for name in re.split(r",\s*", text.strip()) if name]


def require_precision(stage: str, precision: str, layers: EngineLayers, numbers: str = "") -> None:
    """An engine that does not compute in what was asked for is an error, never a silent fallback.

    fp32: no layer touches a narrower float. fp16 and int8: some layer does; islands of wider layers are the graph's
    own choice, which `tensorrt_islands` holds the engine to. int8 is the precision of any calibrated graph, and
    `numbers` what its quantisers round to, int8 or fp8; a bundle that does not tell may be either. Layers without a
    told type (LAYER_NAMES_ONLY) cannot be verified.

    Raises:
        EngineError: names the stage and what was found.
    """
    found = set(layers.counts)
    if not found & {"fp32", *_NARROW}:
        raise EngineError(
            f"stage {stage}: the engine does not tell the precision of its layers",
            expected="an engine built with detailed profiling verbosity",
        )
    good = {precision}
    if precision == "int8":
        good = {numbers} if numbers else {"int8", "fp8"}
    wrong = bool(found & _NARROW) if precision == "fp32" else not found & good
    if wrong:
        told = ", ".join(f"{name} in {count} layers" for name, count in sorted(layers.counts.items()))
        raise EngineError(
            f"stage {stage} was asked for in {numbers or precision} but computes in {told}",
            expected=f"{' or '.join(sorted(good))} layers" if precision != "fp32" else "only fp32 layers",
            remedy="export the graph in this precision, or choose a GPU that supports it",
        )


def _layer(item: Any) -> EngineLayer:
    if isinstance(item, str):
        return EngineLayer(name=item, kind="", precisions=())
    reads, writes = (tuple((_name(t), _precision(t)) for t in _list(item, key)) for key in ("Inputs", "Outputs"))
    return EngineLayer(
        name=str(item.get("Name", "")),
        kind=str(item.get("LayerType", "")),
        precisions=tuple(sorted({precision for _, precision in (*reads, *writes) if precision})),
        reads=reads,
        writes=writes,
        tactic=str(item.get("TacticName", "")),
    )


def _name(tensor: Any) -> str:
    return str(tensor.get("Name", "")) if isinstance(tensor, dict) else str(tensor)


def _list(item: dict[str, Any], key: str) -> list[Any]:
    value = item.get(key, [])
    return value if isinstance(value, list) else [value]


def _precision(tensor: Any) -> str:
    """Up to 10: one text such as "Row major linear FP16 format"; from 11 a key of its own."""
    if not isinstance(tensor, dict):
        return ""
    text = str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format/DataType") or "")
    for word in _WORD.findall(text):
        if word.lower() in _TYPES:
            return _TYPES[word.lower()]
    return ""
