"""The official nuScenes detection metrics, computed by the nuscenes-devkit (configuration detection_cvpr_2019)."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from altermoma.data.nuscenes import NuScenesReader
from altermoma.data.poses import quaternion_product
from altermoma.errors import DataError
from altermoma.evaluation.paired import Matches, match
from altermoma.frames import CLASS_NAMES, Boxes

MAX_BOXES = 500
"""Boxes per sample that the benchmark accepts; the best are kept."""

MOVING_SPEED = 0.2
"""m/s above which a detection counts as moving when its attribute is chosen (rule of BEVFusion and mmdet3d)."""

_MOVING = {
    **dict.fromkeys(("car", "truck", "construction_vehicle", "bus", "trailer"), "vehicle.moving"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}
_STILL = {
    **dict.fromkeys(("car", "truck", "construction_vehicle", "trailer"), "vehicle.parked"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.without_rider"),
    "bus": "vehicle.stopped",
    "pedestrian": "pedestrian.standing",
}

_databases: WeakKeyDictionary[NuScenesReader, Any] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """nuScenes detection metrics, shares from 0 to 1.

    Attributes:
        mAP: mean average precision over classes and matching distances.
        NDS: nuScenes detection score.
        per_class_ap: AP of each class, mean over the matching distances.
        tp_errors: trans_err (m), scale_err, orient_err (rad), vel_err (m/s), attr_err; means over the classes.
        frames, boxes: samples of the split, and detections handed in.
    """

    mAP: float  # noqa: N815
    NDS: float
    per_class_ap: dict[str, float]
    tp_errors: dict[str, float]
    frames: int
    boxes: int


def evaluate(reader: NuScenesReader, split: str, detections: Mapping[str, Boxes]) -> DetectionMetrics:
    """Scores detections (LiDAR frame, by sample token) on every sample of a split.

    Raises:
        DataError: detections for other samples than the split's, boxes that are not finite, or a split without truth.
    """
    with _loaded(reader, split, detections) as official:
        return _metrics(official, detections)


def evaluate_matches(
    reader: NuScenesReader, split: str, detections: Mapping[str, Boxes]
) -> tuple[DetectionMetrics, Matches]:
    """The same with what `paired.compare` tells the noise of a difference from. Errors as `evaluate`."""
    with _loaded(reader, split, detections) as official:
        return _metrics(official, detections), match(official, CLASS_NAMES)


def _metrics(official: Any, detections: Mapping[str, Boxes]) -> DetectionMetrics:
    metrics, _ = official.evaluate()
    summary = metrics.serialize()
    return DetectionMetrics(
        mAP=float(summary["mean_ap"]),
        NDS=float(summary["nd_score"]),
        per_class_ap={name: float(summary["mean_dist_aps"][name]) for name in CLASS_NAMES},
        tp_errors={name: float(value) for name, value in summary["tp_errors"].items()},
        frames=len(detections),
        boxes=sum(map(len, detections.values())),
    )


def attribute_name(class_name: str, speed: float) -> str:
    """Attribute by speed in m/s, the rule of BEVFusion and mmdet3d; empty for classes without attributes."""
    return (_MOVING if speed > MOVING_SPEED else _STILL).get(class_name, "")


def result_records(reader: NuScenesReader, token: str, boxes: Boxes) -> list[dict[str, Any]]:
    """Detections of one sample as records of the benchmark's result file (global frame, width-length-height)."""
    if not (np.isfinite(boxes.geometry_m9).all() and np.isfinite(boxes.scores_m).all()):
        raise DataError(f"detections of sample {token} hold NaN or infinite numbers", expected="finite boxes")
    if len(boxes) > MAX_BOXES:
        boxes = boxes.select(np.argsort(-boxes.scores_m, kind="stable")[:MAX_BOXES])
    key = reader.tables.key_exposures[token]["LIDAR_TOP"]
    poses = reader.poses(token)
    global_from_lidar = poses.global_from_lidar_44
    rotation = quaternion_product(reader.tables.poses[key.pose].rotation, key.sensor.rotation)
    centres = boxes.geometry_m9[:, :3].astype(np.float64) @ global_from_lidar[:3, :3].T + global_from_lidar[:3, 3]
    velocities = boxes.geometry_m9[:, 7:9].astype(np.float64) @ global_from_lidar[:2, :2].T
    records = []
    for index, (_, _, _, length, width, height, yaw, _, _) in enumerate(boxes.geometry_m9.tolist()):
        name = CLASS_NAMES[int(boxes.labels_m[index])]
        heading = (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
        records.append(
            {
                "sample_token": token,
                "translation": centres[index].tolist(),
                "size": [width, length, height],
                "rotation": list(quaternion_product(rotation, heading)),
                "velocity": velocities[index].tolist(),
                "detection_name": name,
                "detection_score": float(boxes.scores_m[index]),
                "attribute_name": attribute_name(name, float(np.hypot(*boxes.geometry_m9[index, 7:9]))),
            }
        )
    return records


def _check_tokens(tokens: list[str], detections: Mapping[str, Boxes], split: str) -> None:
    missing, extra = set(tokens) - set(detections), set(detections) - set(tokens)
    if missing or extra:
        raise DataError(
            f"detections cover {len(detections)} samples: {len(missing)} of split {split!r} are missing, "
            f"{len(extra)} are of other splits",
            expected=f"exactly the {len(tokens)} samples of the split, with empty boxes where nothing was found",
            remedy="predict on reader.tokens(split)",
        )


def _decoy(reader: NuScenesReader, token: str) -> dict[str, Any]:
    """A box far beyond every class range: the devkit cannot read an all-empty result, and filters this one out."""
    far = Boxes(
        geometry_m9=np.array([[1e4, 1e4, 0, 1, 1, 1, 0, 0, 0]], np.float32),
        labels_m=np.zeros(1, np.int64),
        scores_m=np.zeros(1, np.float32),
    )
    return result_records(reader, token, far)[0]


@contextlib.contextmanager
def _loaded(reader: NuScenesReader, split: str, detections: Mapping[str, Boxes]) -> Iterator[Any]:
    """The devkit's evaluation of these detections, ready to be run; silent."""
    tokens = reader.tokens(split)
    _check_tokens(tokens, detections, split)
    if not any(len(truth[0]) for truth in map(reader.truth, tokens) if truth is not None):
        raise DataError(f"split {split!r} has no annotated boxes", expected="a split with truth, not a test set")
    results = {token: result_records(reader, token, detections[token]) for token in tokens}
    if not any(results.values()):
        results[tokens[0]] = [_decoy(reader, tokens[0])]
    meta = {f"use_{name}": name in ("camera", "lidar") for name in ("camera", "lidar", "radar", "map", "external")}
    with tempfile.TemporaryDirectory(prefix="altermoma-eval-") as folder, _quiet():
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection.evaluate import DetectionEval

        path = Path(folder) / "results.json"
        path.write_text(json.dumps({"meta": meta, "results": results}), encoding="utf-8")
        yield DetectionEval(
            _database(reader), config_factory("detection_cvpr_2019"), str(path), split, output_dir=folder, verbose=False
        )


def _database(reader: NuScenesReader) -> Any:
    """The devkit's own database, loaded once per reader."""
    if reader not in _databases:
        from nuscenes import NuScenes

        try:
            _databases[reader] = NuScenes(version=reader.version, dataroot=str(reader.root), verbose=False)
        except (AssertionError, OSError, LookupError, ValueError) as error:
            raise DataError(
                f"the nuscenes-devkit cannot load {reader.root / reader.version}: {error}",
                expected="all thirteen nuScenes v1.0 tables and the maps that map.json names: the official evaluation "
                "reads them all",
                remedy="unpack the metadata and the map archive again; `maps/` lies beside `samples/`",
            ) from error
    return _databases[reader]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The devkit prints, draws progress bars for loops of milliseconds, and calls deprecated functions of its own."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
