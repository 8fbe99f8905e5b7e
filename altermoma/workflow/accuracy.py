"""Evaluation steps: torch models and exported engines on the validation split, and engine boxes against torch's."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from altermoma.data.dataset import FrameDataset
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import TensorSpec
from altermoma.deploy.matching import match_boxes
from altermoma.deploy.onnxruntime_backend import OnnxRuntimeStage
from altermoma.deploy.pipeline import Backend, Pipeline
from altermoma.deploy.self_check import SCORE_FLOOR
from altermoma.evaluation.nuscenes_eval import evaluate
from altermoma.evaluation.predict import Run, detect, detect_with, run_torch, score_map
from altermoma.frames import Boxes
from altermoma.workflow.detections import Found, keep_detections, read_detections
from altermoma.workflow.place import Workplace

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel

DETECTIONS_FILE = "detections.npz"


def evaluate_torch(place: Workplace, model: FusionModel, folder: Path) -> dict[str, Any]:
    """Predicts and scores the validation split in torch; detections are kept in the folder."""
    found = _scored(place, folder / DETECTIONS_FILE, lambda start: detect(model, place.val, start=start))
    return found | _map_scores(place.val, run_torch(model, place.geometry))


def evaluate_engine(place: Workplace, bundle: Path, backend: Backend, precision: str, file: Path) -> dict[str, Any]:
    """Predicts and scores the validation split with the stages of a bundle, prepared as the bundle's model needs it."""
    opened, threads = Bundle.open(bundle), os.cpu_count() or 1
    if (backend, precision) == ("onnxruntime", "fp16"):
        pipeline = rounded_pipeline(opened, precision, threads)
    else:
        pipeline = Pipeline.from_bundle(opened, backend, precision=precision, threads=threads)
    return score_pipeline(place, opened, pipeline, file, f"Detecting, {backend} {precision}")


def score_pipeline(
    place: Workplace, bundle: Bundle, pipeline: Pipeline, file: Path, description: str = "Detecting"
) -> dict[str, Any]:
    """Predicts and scores the validation split with a pipeline of a bundle; detections are kept in `file`."""
    head = next(iter(bundle.manifest.stages.values()))["head"]
    frames = place.val_for(bundle.manifest.geometry, map_shape_of(head.outputs))
    found = _scored(
        place, file, lambda start: detect_with(pipeline.run_stages, frames, start=start, description=description)
    )
    return found | _map_scores(frames, pipeline.run_stages)


def map_shape_of(outputs: Sequence[TensorSpec]) -> tuple[int, int, int] | None:
    """Classes and cells of the map that a head stage puts out; None without one."""
    for spec in outputs:
        if spec.name == "map":
            _, classes, x, y = map(int, spec.shape)
            return classes, x, y
    return None


def _map_scores(frames: FrameDataset, run: Run) -> dict[str, Any]:
    """IoU of the map by class and their mean, where the frames have masks."""
    if frames.masks is None:
        return {}
    scores = score_map(run, frames)
    return {"mIoU": scores.mean, "map_iou": dict(scores.best)}


def rounded_pipeline(bundle: Bundle, precision: str, threads: int) -> Pipeline:
    """TensorRT's fp16 or int8 stages on ONNX Runtime with every rounding to half precision written out.

    Left to itself, the CPU backend computes fp16 graphs in fp32 and would show an accuracy that no engine has.
    """
    import onnx

    from altermoma.export.passes.emulate_half import emulate_half

    runners = {}
    for name, record in bundle.stages(precision).items():
        graph = emulate_half(onnx.load_model_from_string(bundle.graph(record)))
        runners[name] = OnnxRuntimeStage(graph.SerializeToString(), record, threads=threads)
    return Pipeline(bundle.manifest.geometry, runners)


def _scored(place: Workplace, file: Path, find: Callable[[int], Found]) -> dict[str, Any]:
    detections = keep_detections(file, find)
    return dataclasses.asdict(evaluate(place.reader, place.recipe.data.val_split, detections))


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Boxes of an engine against torch's; see report.summary.BoxParity."""

    frames: int
    boxes: int
    matched: float
    max_difference: float
    max_score_difference: float


def compare_files(reference: Path, other: Path) -> Agreement:
    return compare(read_detections(reference), read_detections(other))


def compare(reference: Mapping[str, Boxes], other: Mapping[str, Boxes]) -> Agreement:
    """Pairs the boxes of each frame and takes the largest differences over all pairs.

    A box with a number that is not finite counts as not found.
    """
    strong = {token: boxes.select(boxes.scores_m >= SCORE_FLOOR) for token, boxes in reference.items()}
    geometry, scores, matched = 0.0, 0.0, 0
    for token, boxes in strong.items():
        ours, theirs = match_boxes(boxes, other[token])
        apart = np.abs(boxes.geometry_m9[ours].astype(np.float64) - other[token].geometry_m9[theirs])
        apart[:, 6] = np.abs((apart[:, 6] + np.pi) % (2 * np.pi) - np.pi)  # angles the short way round
        unlike = np.abs(boxes.scores_m[ours] - other[token].scores_m[theirs])
        sound = np.isfinite(apart).all(axis=1) & np.isfinite(unlike)
        geometry = max(geometry, float(apart[sound].max(initial=0.0)))
        scores = max(scores, float(unlike[sound].max(initial=0.0)))
        matched += int(sound.sum())
    total = sum(len(boxes) for boxes in strong.values())
    return Agreement(
        frames=len(strong),
        boxes=total,
        matched=matched / total if total else 1.0,
        max_difference=geometry,
        max_score_difference=scores,
    )
