"""A bundle checks itself: every stage and the whole frame against the answers that it carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import BUILD_COMMAND, STAGES, StageRecord
from altermoma.deploy.matching import HEAD, MATCH_RADIUS_M, match_boxes, only_ties_lost, pair_proposals
from altermoma.deploy.noise import limits, stage_noise, worst
from altermoma.deploy.pipeline import Backend, Pipeline, open_stages
from altermoma.deploy.reference import Reference
from altermoma.deploy.stage_io import Arrays, StageRunner
from altermoma.errors import BundleError, EngineError

SCORE_FLOOR = 0.1
"""Reference boxes below are not held against the bundle: near the noise their order means nothing."""

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class TensorCheck:
    """One output of one stage, fed with the reference's own inputs.

    Attributes:
        difference: largest absolute difference over the reference's largest magnitude; of int8 the `measure` that
            comes nearest to its limit (`deploy.noise`).
        mean: mean absolute difference over the reference's largest magnitude.
        finite: whether the output holds neither NaN nor infinity; if not, `difference` is infinite.
        measure: what `difference` is.
    """

    precision: str
    stage: str
    tensor: str
    difference: float
    mean: float
    allowed: float
    finite: bool = True
    measure: str = "difference"

    @property
    def passed(self) -> bool:
        return self.finite and self.difference <= self.allowed

    def __str__(self) -> str:
        told = f"{self.precision} {self.stage}.{self.tensor}"
        if not self.finite:
            return f"{told} holds NaN or infinity"
        return f"{told}: {told_of(self.measure, self.difference, self.allowed)}"


@dataclass(frozen=True, kw_only=True)
class FrameCheck:
    """The whole frame from raw sensor arrays.

    Attributes:
        boxes, matched: reference boxes of at least `SCORE_FLOOR`, and those found again with their class.
        centre_m, score: largest differences over matched boxes.
    """

    precision: str
    boxes: int
    matched: int
    centre_m: float
    score: float
    allowed_share: float
    allowed_centre_m: float

    @property
    def passed(self) -> bool:
        return self.matched >= self.allowed_share * self.boxes and self.centre_m <= self.allowed_centre_m


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    backend: Backend
    tensors: tuple[TensorCheck, ...]
    frames: tuple[FrameCheck, ...]

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.tensors) and all(c.passed for c in self.frames)

    def require(self) -> SelfCheck:
        """Gives itself back if everything passed.

        Raises:
            EngineError: names every output and frame that left its tolerance.
        """
        faults = [str(c) for c in self.tensors if not c.passed]
        faults += [f"{c.precision} frame: {c.matched} of {c.boxes} boxes found" for c in self.frames if not c.passed]
        if faults:
            raise EngineError(
                f"the bundle does not reproduce its reference on {self.backend}:\n  " + "\n  ".join(faults),
                expected="every stage within the tolerance in the manifest",
                remedy="do not drive with it; rebuild the engines, or export again with another precision",
            )
        return self


def check_bundle(path: Path | str | Bundle, backend: Backend = "onnxruntime", *, threads: int = 1) -> SelfCheck:
    """Runs the reference frame, stage by stage and from raw sensor arrays to boxes.

    On ONNX Runtime every precision of the bundle is checked, on TensorRT every one that has engines.

    Raises:
        BundleError: the bundle is damaged.
        EngineError: no engine to check, or one that does not run here.
    """
    bundle = path if isinstance(path, Bundle) else Bundle.open(Path(path))
    reference = bundle.reference()
    tensors: list[TensorCheck] = []
    frames: list[FrameCheck] = []
    for precision in _to_check(bundle, backend):
        runners = open_stages(bundle, backend, precision, threads=threads)
        allowed = bundle.manifest.tolerances[precision]
        for name in STAGES:
            tensors += check_stage(precision, runners[name], reference, allowed)
        frames.append(check_frame(precision, Pipeline(bundle.manifest.geometry, runners), reference))
    return SelfCheck(backend=backend, tensors=tuple(tensors), frames=tuple(frames))


def _to_check(bundle: Bundle, backend: Backend) -> tuple[str, ...]:
    if backend == "onnxruntime":
        return bundle.manifest.precisions
    built = {record.precision for record in bundle.manifest.engines.built}
    if not built:
        raise EngineError(
            f"bundle {bundle.folder} holds no engines: {bundle.manifest.engines.reason or 'none were built'}",
            expected="engines built on this machine",
            remedy=f"run {BUILD_COMMAND}",
        )
    return tuple(sorted(built))


def check_stage(precision: str, runner: StageRunner, reference: Reference, allowed: float) -> list[TensorCheck]:
    """Every output of one stage, fed with the reference's own inputs.

    Args:
        precision: of the stage.
        runner: runs it; its record tells how far an int8 stage was off at the export.
        reference: inputs and outputs.
        allowed: tolerance in the manifest: of the difference, or of an int8 stage the bound of its noise.

    Raises:
        BundleError: the reference lacks one of them.
        EngineError: the stage does not run.
    """
    record = runner.record
    outputs = runner.run(reference_inputs(record, reference))
    missing = [spec.name for spec in record.outputs if spec.name not in reference.tensors]
    if missing:
        raise BundleError(f"the reference holds no {', '.join(missing)} of stage {record.name}", remedy="export again")
    wanted = {spec.name: reference.tensors[spec.name] for spec in record.outputs}
    measured = stage_noise(wanted, outputs) if precision == "int8" else {}
    checks = []
    for name, (got, want) in align_proposals(wanted, outputs, allowed).items():
        off = np.abs(got - want) / max(float(np.abs(want).max(initial=0.0)), 1e-12)
        measure, found, limit = "difference", float(off.max(initial=0.0)), allowed
        if measured:
            measure, found, limit = worst(measured[name], limits(record.noise.get(name, {}), allowed))
        finite = bool(np.isfinite(got).all())
        checks.append(
            TensorCheck(
                precision=precision,
                stage=record.name,
                tensor=name,
                difference=found if finite else float("inf"),
                mean=float(off.mean()) if off.size else 0.0,
                allowed=limit,
                finite=finite,
                measure=measure,
            )
        )
    return checks


def told_of(measure: str, value: float, allowed: float) -> str:
    """What a check found, for people."""
    if measure == "difference":
        return f"off by {value:.2e}, allowed {allowed:.0e}"
    return f"{measure} {value:.2e}, allowed {allowed:.1e}"


def reference_inputs(record: StageRecord, reference: Reference) -> Arrays:
    """What the stage is fed with, as far as the reference holds it."""
    known = {**reference.tensors, **reference.host}
    return {spec.name: known[spec.name] for spec in record.inputs if spec.name in known}


def align_proposals(wanted: Arrays, got: Arrays, allowed: float) -> dict[str, Pair]:
    """(found, expected) in float64 by output name; proposals [1, ., P] of the head are brought into one order first.

    Top-k picks proposals by score, so rounding may swap neighbours or exchange those at the cut. Where more is lost
    than such ties, all are compared in the order they come, so that the differences say how wrong they are.
    """
    pairs: dict[str, Pair] = {name: (_f64(got[name]), _f64(array)) for name, array in wanted.items()}
    finite = all(np.isfinite(found).all() for found, _ in pairs.values())
    if HEAD.labels not in pairs or not finite or _close(pairs, allowed):
        return pairs
    found = pair_proposals(wanted, got, HEAD)
    if not only_ties_lost(found.matched, found.above_cut, allowed):
        return pairs
    proposals = wanted[HEAD.labels].shape[-1]
    return {
        name: (pair[0][..., found.right], pair[1][..., found.left])
        if pair[1].ndim <= 3 and pair[1].shape[-1] == proposals
        else pair
        for name, pair in pairs.items()
    }


def _close(pairs: dict[str, Pair], allowed: float) -> bool:
    return all(
        np.abs(found - expected).max(initial=0.0) <= allowed * np.abs(expected).max(initial=0.0)
        for found, expected in pairs.values()
    )


def _f64(array: NDArray[np.generic]) -> NDArray[np.float64]:
    return array.astype(np.float64)


def check_frame(precision: str, pipeline: Pipeline, reference: Reference) -> FrameCheck:
    """The whole frame from raw sensor arrays, its boxes against the reference's."""
    answer = pipeline(reference.images_vhw3, reference.points_p5, reference.calibration)
    sure = reference.boxes.select(reference.boxes.scores_m >= SCORE_FLOOR)
    left, right = match_boxes(sure, answer.boxes)
    centre = sure.geometry_m9[left, :3] - answer.boxes.geometry_m9[right, :3]
    return FrameCheck(
        precision=precision,
        boxes=len(sure),
        matched=len(left),
        centre_m=float(np.linalg.norm(centre, axis=1).max(initial=0.0)),
        score=float(np.abs(sure.scores_m[left] - answer.boxes.scores_m[right]).max(initial=0.0)),
        allowed_share=1.0 if precision == "fp32" else 0.9,
        allowed_centre_m=5e-3 if precision == "fp32" else MATCH_RADIUS_M,
    )
