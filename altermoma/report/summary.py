"""`summary.json`: the figures of one run for programs. Keys are explained in docs/summary.md.

Pure data: importable without torch, so that a dashboard or a gate can read it with numpy-free code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from altermoma.deploy.benchmark import FRAME, realised_share
from altermoma.deploy.manifest import STAGES
from altermoma.errors import StorageError
from altermoma.recipe import Precision
from altermoma.storage import read_json, write_json

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Milliseconds over whole frames."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model in one runtime at one precision.

    Attributes:
        gflops: 2 x MACs / 1e9 that the graphs execute on the reference frame, padding of the gather tables included.
        gflops_real: the same where sparse layers count only the pairs that have a source voxel.
        latency_ms: percentiles by stage and for the whole `frame`; None where no honest figure exists (see `note`).
        realised_share: (1 - ms / ms of dense) / (1 - flops / flops of dense) in the same runtime, whole frame.
        mIoU: of the map head, 0 to 1; None without masks.
    """

    title: str
    runtime: Literal["torch", "onnxruntime", "tensorrt"]
    precision: Precision
    pruned: bool
    mAP: float  # noqa: N815 (the metric's name)
    NDS: float
    gflops: float
    gflops_real: float
    params: int
    latency_ms: dict[str, Percentiles] | None = None
    realised_share: float | None = None
    note: str = ""
    mIoU: float | None = None  # noqa: N815 (the metric's name)


@dataclass(frozen=True, kw_only=True)
class RealisedShare:
    """R in ONNX Runtime fp32: over whole frames, and over the graphs alone (stages without host work)."""

    frame: float | None = None
    graphs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Engine against torch, the worst output of a stage.

    Attributes:
        max, mean: absolute difference in the tensor's own unit.
        scaled_max: largest difference over the largest torch magnitude; the recipe's tolerance bounds this.
        cosine: of both tensors as vectors.
    """

    max: float
    mean: float
    scaled_max: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class BoxParity:
    """Final boxes of one runtime against torch over several frames.

    Attributes:
        matched: share of torch's boxes with a score of at least 0.1 that the engine has too, with the same class.
        max_difference: largest absolute difference over matched boxes, in m, rad or m/s.
        max_score_difference: likewise of scores.
        mAP_difference: engine's mAP less torch's, over the validation split.
    """

    frames: int
    boxes: int
    matched: float
    max_difference: float
    max_score_difference: float
    mAP_difference: float  # noqa: N815 (the metric's name)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """`stages` each alone on torch's inputs; `frame` is the last stage's output after all of them in a chain.

    Both are measured on the reference frame with the ONNX graphs; None for TensorRT, whose boxes are compared.
    """

    stages: dict[str, Difference]
    frame: Difference | None
    boxes: BoxParity


@dataclass(frozen=True, kw_only=True)
class Engines:
    """What became of TensorRT engines: `status` is "built" or "not built here", `line` says why.

    `built` has what was asked for and what was found of each (`altermoma.deploy.engine_report.engine_rows`).
    """

    status: str
    line: str
    command: str = ""
    target: str = ""
    built: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerWidth:
    """Output channels of one layer before and after pruning."""

    partition: str
    layer: str
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Product:
    """One convolution or matrix product of the exported graphs.

    Attributes:
        inputs, outputs: channels, or rows and columns of a matrix; `positions` of the kernel.
        flops: 2 x MACs on the reference frame.
        two_four: whether its weights are 2:4.
        obstacle: why it stays dense; empty where its width and precision let it be 2:4.
    """

    stage: str
    node: str
    operator: str
    inputs: int
    outputs: int
    positions: int
    flops: float
    two_four: bool
    obstacle: str


@dataclass(frozen=True, kw_only=True)
class SparseProducts:
    """What 2:4 sparsity can do for the pruned model, and what was done.

    Attributes:
        asked: "dense" or "2:4"; `rule` says how wide a product must be for it.
        eligible_flops, two_four_flops: share of all FLOPs in products that could be, and that are 2:4.
        kept_before, kept_after: share of those weights' magnitude that stayed, as the channels were and reordered;
            None where nothing was made 2:4.
    """

    asked: str
    rule: str
    eligible_flops: float
    two_four_flops: float
    layers: tuple[Product, ...]
    kept_before: float | None = None
    kept_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything in `summary.json`."""

    name: str
    model: str
    data: dict[str, Any]
    variants: dict[str, Variant]
    flops_reduction: float
    realised_share: RealisedShare
    parity: dict[str, Parity]
    engines: Engines
    channels: tuple[LayerWidth, ...]
    versions: dict[str, str]
    device: str
    seconds: dict[str, float]
    peak_memory_mib: float
    recipe: dict[str, Any]
    notes: tuple[str, ...] = field(default=())
    sparsity: SparseProducts | None = None
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Summary:
        return from_json(read_json(path), str(path))


def realised(dense_ms: float, pruned_ms: float, flops_reduction: float) -> float | None:
    """R, or None where no FLOPs were saved and it has no meaning."""
    return realised_share(dense_ms, pruned_ms, flops_reduction) if flops_reduction > 0 else None


def graph_p50(latency_ms: Mapping[str, Percentiles]) -> float:
    """Sum of the medians of the network's stages, without what the host does before and after."""
    return sum(latency_ms[stage].p50 for stage in STAGES if stage in latency_ms)


def from_json(record: dict[str, Any], source: str = "summary") -> Summary:
    """Reads a summary back, checking its schema and keys."""
    if record.get("schema") != SCHEMA:
        raise StorageError(f"{source} has schema {record.get('schema')!r}", expected=f"schema {SCHEMA}")
    try:
        fields = dict(record)
        fields["variants"] = {name: _variant(value) for name, value in record["variants"].items()}
        fields["realised_share"] = RealisedShare(**record["realised_share"])
        fields["parity"] = {name: _parity(value) for name, value in record["parity"].items()}
        engines = record["engines"]
        fields["engines"] = Engines(**{**engines, "built": tuple(engines.get("built", ()))})
        fields["channels"] = tuple(LayerWidth(**value) for value in record["channels"])
        fields["notes"] = tuple(record["notes"])
        fields["sparsity"] = _sparsity(record.get("sparsity"))
        return Summary(**fields)
    except (KeyError, TypeError) as error:
        raise StorageError(f"{source} is no summary: {error}", expected="the keys of docs/summary.md") from error


def _variant(record: dict[str, Any]) -> Variant:
    latency = record["latency_ms"]
    times = None if latency is None else {stage: Percentiles(**value) for stage, value in latency.items()}
    return Variant(**{**record, "latency_ms": times})


def _parity(record: dict[str, Any]) -> Parity:
    stages = {stage: Difference(**value) for stage, value in record["stages"].items()}
    frame = None if record["frame"] is None else Difference(**record["frame"])
    return Parity(stages=stages, frame=frame, boxes=BoxParity(**record["boxes"]))


def _sparsity(record: dict[str, Any] | None) -> SparseProducts | None:
    if record is None:
        return None
    return SparseProducts(**{**record, "layers": tuple(Product(**layer) for layer in record["layers"])})


def stage_names(variants: Sequence[Variant]) -> list[str]:
    """Stages in the order in which they first appear, the whole frame left out."""
    names: list[str] = []
    for variant in variants:
        for stage in variant.latency_ms or {}:
            if stage != FRAME and stage not in names:
                names.append(stage)
    return names
