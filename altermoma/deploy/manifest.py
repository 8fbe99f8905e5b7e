"""The schema of a bundle's `manifest.json`: what a vehicle must know to check, build and run it. Pure data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from altermoma.errors import BundleError
from altermoma.geometry import Geometry

SCHEMA = 1
"""Raised with every change that an older reader would misunderstand."""

STAGES: tuple[str, ...] = ("camera", "view", "lidar", "fusion", "head")
"""Order in which the stages can run: each one's inputs come from the host or from an earlier stage."""

NOT_BUILT: Final = "not built here"

BUILD_COMMAND = "altermoma build BUNDLE"
"""What to run on a target, in the folder that holds the bundle."""


@dataclass(frozen=True, kw_only=True)
class AxisRange:
    """Allowed sizes of a dynamic axis; `opt` is what engines are tuned for."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a stage.

    Attributes:
        dtype: numpy name, as in the graph.
        shape: sizes; a string names a dynamic axis, the same size wherever it occurs in the stage.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str = ""
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage graph of one precision: its file in the bundle and its contract.

    Attributes:
        numbers: what its quantisers round to, "int8" or "fp8"; empty where it has none, or comes from a writer that did
            not tell.
        noise: of an int8 graph, by output and measure (`deploy.noise`), how far it is from the reference.
        rounding: the same between two runs of it whose inputs differ by the rounding of fp16: what an engine and ONNX
            Runtime may differ by on one graph.
    """

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: dict[str, AxisRange] = field(default_factory=dict)
    numbers: str = ""
    noise: dict[str, dict[str, float]] = field(default_factory=dict)
    rounding: dict[str, dict[str, float]] = field(default_factory=dict)

    def sizes(self, spec: TensorSpec, which: Literal["min", "opt", "max"]) -> tuple[int, ...]:
        """Shape of one tensor with every dynamic axis at its smallest, tuned or largest size.

        At least one row everywhere: engines are never fed empty tensors, the pipeline answers for those itself.
        """
        return tuple(d if isinstance(d, int) else max(1, int(getattr(self.axes[d], which))) for d in spec.shape)

    def dynamic(self, spec: TensorSpec) -> bool:
        return any(isinstance(d, str) for d in spec.shape)


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One engine plan that was built and verified.

    Attributes:
        key: content hash of graph, contract, options, TensorRT version, device and the code that builds; a plan of
            another key is never used.
        precisions: layers per computed precision, as the engine inspector told.
        layers: of the engine, after fusion.
        sparsity: what was asked for, "dense" or "2:4".
        sparse_eligible, sparse_picked: layers that TensorRT called eligible for 2:4 kernels, and those that it picked
            such kernels for.
        version_compatible, hardware_compatible: what else the plan runs on (`BuilderRecipe`).
        dla_core: accelerator that it was built for, -1 for none.
        dla_lacks: layers of such a stage that run on the GPU.
        stripped: whether the plan holds no weights, and takes those of the stage's graph.
        fault: why it is not what was asked for; `deploy.gpu_check` alone keeps and measures such an engine.
    """

    stage: str
    precision: str
    file: str
    sha256: str
    size: int
    key: str
    tensorrt: str
    device: str
    precisions: dict[str, int] = field(default_factory=dict)
    layers: int = 0
    sparsity: str = "dense"
    sparse_eligible: int = 0
    sparse_picked: int = 0
    version_compatible: bool = False
    hardware_compatible: str = "none"
    dla_core: int = -1
    dla_lacks: int = 0
    stripped: bool = False
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """Engines of this bundle: `state` is "built" or "not built here" with the reason and what to run on the target."""

    state: Literal["built", "not built here"] = NOT_BUILT
    reason: str = ""
    command: str = ""
    built: tuple[EngineRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything but the files themselves.

    Attributes:
        recipe, metrics, target: as the run that made the bundle recorded them.
        widths: channels per prunable layer, dense and kept.
        versions: library versions of that run.
        tolerances: per precision, the largest allowed difference to the reference over its largest magnitude; of int8
            the bound of the noise over the signal, below which each stage is held to what it was measured to have.
        stages: precision -> stage name -> record.
        files: every file but the manifest and what lies under `engines/`.
        sparsity: of every product of the graphs, whether its weights are 2:4 and why not (altermoma.export.sparsity).
        onnxruntime: precision -> stage name -> record of the graphs that ONNX Runtime runs in place of `stages`; only
            int8 has any, since its CPU kernels are fast with unsigned numbers and TensorRT takes signed ones alone.
    """

    name: str
    recipe: dict[str, Any]
    geometry: Geometry
    class_names: tuple[str, ...]
    stages: dict[str, dict[str, StageRecord]]
    tolerances: dict[str, float]
    files: dict[str, FileRecord]
    widths: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    engines: EngineState = field(default_factory=EngineState)
    sparsity: dict[str, Any] = field(default_factory=dict)
    onnxruntime: dict[str, dict[str, StageRecord]] = field(default_factory=dict)

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(self.stages)


def to_text(manifest: Manifest) -> str:
    """Canonical JSON with a seal over the content, so that any changed byte is noticed."""
    record: dict[str, Any] = {"schema": SCHEMA, **dataclasses.asdict(manifest)}
    if not record["onnxruntime"]:
        del record["onnxruntime"]  # readers before int8 do not know the key
    text = _canonical(record)
    return _canonical({**record, "seal": _seal(json.loads(text))})


def from_text(text: str, source: str) -> Manifest:
    """Reads and checks a manifest; `source` names it in errors.

    Raises:
        BundleError: not JSON, another schema, altered, or with missing or foreign keys.
    """
    record = _parse(text, source)
    schema = record.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise BundleError(f"{source} has schema {schema!r}", expected=f"a schema number up to {SCHEMA}")
    if schema > SCHEMA:
        raise BundleError(
            f"{source} has schema {schema}, newer than this altermoma understands",
            expected=f"schema {SCHEMA} or older",
            remedy="install the altermoma version in the manifest's versions.altermoma, or a newer one",
        )
    seal = record.pop("seal", None)
    if seal != _seal(record) or _canonical({**record, "seal": seal}) != text:
        raise BundleError(
            f"{source} was altered after it was written: its seal does not match its content",
            expected="the manifest as written",
            remedy="copy the bundle again from where it was made",
        )
    try:
        return _manifest(record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(
            f"{source} is incomplete or malformed: {error!r}", expected="every key of schema 1"
        ) from error


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise BundleError(f"{source} is not valid JSON: {error}", remedy="copy the bundle again") from error
    if not isinstance(record, dict):
        raise BundleError(f"{source} holds a {type(record).__name__}", expected="a JSON object")
    return record


def _canonical(record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
    except (ValueError, TypeError) as error:
        raise BundleError(f"the manifest cannot be written as JSON: {error}", expected="plain finite values") from error


def _seal(record: dict[str, Any]) -> str:
    compact = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(compact.encode()).hexdigest()


def _manifest(record: dict[str, Any]) -> Manifest:
    known = {f.name for f in dataclasses.fields(Manifest)} | {"schema"}
    foreign = sorted(set(record) - known)
    if foreign:
        raise ValueError(f"unknown keys {', '.join(foreign)}")
    plain = {k: record[k] for k in ("name", "recipe", "tolerances", "widths", "metrics", "versions", "target")}
    return Manifest(
        **plain,
        geometry=Geometry.from_json(record["geometry"]),
        class_names=tuple(record["class_names"]),
        stages=_stages(record["stages"]),
        onnxruntime=_stages(record.get("onnxruntime", {})),
        files={path: FileRecord(**r) for path, r in record["files"].items()},
        engines=_engines(record["engines"]),
        sparsity=dict(record.get("sparsity", {})),
    )


def _stages(record: dict[str, Any]) -> dict[str, dict[str, StageRecord]]:
    return {p: {n: _stage(r) for n, r in stages.items()} for p, stages in record.items()}


def _stage(record: dict[str, Any]) -> StageRecord:
    return StageRecord(
        name=record["name"],
        file=record["file"],
        inputs=tuple(_tensor(r) for r in record["inputs"]),
        outputs=tuple(_tensor(r) for r in record["outputs"]),
        axes={name: AxisRange(**r) for name, r in record["axes"].items()},
        numbers=record.get("numbers", ""),
        noise=record.get("noise", {}),
        rounding=record.get("rounding", {}),
    )


def _tensor(record: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**record, "shape": tuple(record["shape"])})


def _engines(record: dict[str, Any]) -> EngineState:
    return EngineState(**{**record, "built": tuple(EngineRecord(**r) for r in record["built"])})
