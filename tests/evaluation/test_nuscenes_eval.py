"""The evaluation against results written straight from the tables, and against errors put in on purpose."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altermoma.data.nuscenes import NuScenesReader
from altermoma.errors import DataError
from altermoma.evaluation.nuscenes_eval import MAX_BOXES, attribute_name, evaluate, result_records
from altermoma.frames import CLASS_NAMES, Boxes

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def reader(tiny_nuscenes: Path) -> NuScenesReader:
    return NuScenesReader(tiny_nuscenes, VERSION)


def _perfect(reader: NuScenesReader, split: str) -> dict[str, Boxes]:
    """The truth that has returns, with distinct scores and no unknown velocity."""
    rng, found = np.random.default_rng(0), {}
    for token in reader.tokens(split):
        boxes, points = reader.truth(token)
        boxes = boxes.select(points > 0)
        found[token] = dataclasses.replace(
            boxes,
            geometry_m9=np.nan_to_num(boxes.geometry_m9),
            scores_m=rng.uniform(0.1, 0.9, len(boxes)).astype(np.float32),
        )
    return found


def _changed(detections: Mapping[str, Boxes], column: int, amount: float) -> dict[str, Boxes]:
    result = {}
    for token, boxes in detections.items():
        geometry = boxes.geometry_m9.copy()
        geometry[:, column] += amount
        result[token] = dataclasses.replace(boxes, geometry_m9=geometry)
    return result


def _present(reader: NuScenesReader, split: str) -> set[str]:
    labels = np.concatenate([boxes.labels_m for boxes in _perfect(reader, split).values()])
    return {CLASS_NAMES[i] for i in labels}


@pytest.mark.parametrize("split", ["mini_val", "custom"])
def test_perfect_detections_score_one(reader: NuScenesReader, split: str) -> None:
    metrics = evaluate(reader, split, _perfect(reader, split))
    present = _present(reader, split)
    assert len(present) == 5
    for name, value in metrics.per_class_ap.items():
        assert value == pytest.approx(1.0 if name in present else 0.0, abs=1e-6)
    assert metrics.mAP == pytest.approx(len(present) / 10, abs=1e-6)
    assert metrics.frames == 4


def test_nothing_found_scores_zero(reader: NuScenesReader) -> None:
    metrics = evaluate(reader, "mini_val", {token: Boxes.empty() for token in reader.tokens("mini_val")})
    assert metrics.mAP == metrics.NDS == 0.0
    assert metrics.boxes == 0


@pytest.mark.parametrize(
    ("column", "amount", "error", "tolerance"),
    [
        (0, 0.4, "trans_err", 1e-3),
        (1, -0.3, "trans_err", 1e-3),
        (6, 0.2, "orient_err", 1e-2),
        (7, 0.5, "vel_err", 3e-2),
    ],
)
def test_errors_put_in_come_out(
    reader: NuScenesReader, column: int, amount: float, error: str, tolerance: float
) -> None:
    # The tilted LiDAR frame keeps neither a box's own tilt nor the vertical share of its velocity: hence tolerances.
    split = "custom"
    metrics = evaluate(reader, split, _changed(_perfect(reader, split), column, amount))
    # A class without truth counts as an error of 1; cones have no orientation, cones and barriers no velocity.
    judged = {"trans_err": 10, "orient_err": 9, "vel_err": 8}[error]
    present = len(_present(reader, split)) - (error == "vel_err")
    expected = (present * abs(amount) + judged - present) / judged
    assert metrics.tp_errors[error] == pytest.approx(expected, abs=tolerance)


def test_result_file_equals_one_written_from_the_tables(reader: NuScenesReader) -> None:
    from nuscenes.eval.common.utils import quaternion_yaw
    from pyquaternion import Quaternion

    annotations = {r["token"]: r for r in json.loads((reader.root / VERSION / "sample_annotation.json").read_text())}
    for token in reader.tokens("mini_val"):
        truth, _ = reader.truth(token)
        known = [a for a in reader.tables.annotations_of[token] if a.label >= 0]
        for ours, row in zip(result_records(reader, token, _finite(truth)), known, strict=True):
            theirs = annotations[row.token]
            np.testing.assert_allclose(ours["translation"], theirs["translation"], atol=1e-4)
            np.testing.assert_allclose(ours["size"], theirs["size"], atol=1e-6)
            turn = quaternion_yaw(Quaternion(ours["rotation"])) - quaternion_yaw(Quaternion(theirs["rotation"]))
            assert abs(np.angle(np.exp(1j * turn))) < 0.01  # the box's own tilt is not kept
            speed = reader.velocity(row.token)
            if np.isfinite(speed).all():
                # Projected to the tilted LiDAR plane and back.
                np.testing.assert_allclose(ours["velocity"], speed[:2], atol=0.05 * np.linalg.norm(speed) + 1e-3)


def _finite(boxes: Boxes) -> Boxes:
    return dataclasses.replace(boxes, geometry_m9=np.nan_to_num(boxes.geometry_m9))


def test_metrics_equal_the_devkit_run_by_hand(reader: NuScenesReader, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    noisy = {}
    for token, boxes in _perfect(reader, "mini_val").items():
        geometry = np.concatenate([boxes.geometry_m9, boxes.geometry_m9 + 5])
        geometry[:, :2] += rng.normal(0, 0.8, (len(geometry), 2))
        labels = np.tile(boxes.labels_m, 2)
        scores = rng.uniform(0, 1, len(labels)).astype(np.float32)
        noisy[token] = Boxes(geometry_m9=geometry, labels_m=labels, scores_m=scores)
    ours = evaluate(reader, "mini_val", noisy)
    theirs = _by_hand(reader, noisy, tmp_path)
    assert 0.05 < ours.mAP < 0.45
    assert ours.mAP == pytest.approx(theirs["mean_ap"], abs=1e-9)
    assert abs(ours.NDS - theirs["nd_score"]) < 1e-4


def _by_hand(reader: NuScenesReader, detections: Mapping[str, Boxes], folder: Path) -> dict[str, Any]:
    """Boxes moved to the global frame by the devkit's own classes, evaluated by its main()."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nuscenes import NuScenes
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection.evaluate import DetectionEval
        from nuscenes.utils.data_classes import Box
        from pyquaternion import Quaternion

        devkit = NuScenes(VERSION, str(reader.root), verbose=False)
        results: dict[str, list[dict[str, Any]]] = {}
        for token, boxes in detections.items():
            key = devkit.get("sample_data", devkit.get("sample", token)["data"]["LIDAR_TOP"])
            mount = devkit.get("calibrated_sensor", key["calibrated_sensor_token"])
            pose = devkit.get("ego_pose", key["ego_pose_token"])
            results[token] = []
            for row, label, score in zip(boxes.geometry_m9.tolist(), boxes.labels_m, boxes.scores_m, strict=True):
                heading = Quaternion(axis=[0, 0, 1], radians=row[6])
                box = Box(row[:3], [row[4], row[3], row[5]], heading, velocity=(row[7], row[8], 0.0))
                for record in (mount, pose):
                    box.rotate(Quaternion(record["rotation"]))
                    box.translate(np.array(record["translation"]))
                results[token].append(
                    {
                        "sample_token": token,
                        "translation": box.center.tolist(),
                        "size": box.wlh.tolist(),
                        "rotation": box.orientation.elements.tolist(),
                        "velocity": box.velocity[:2].tolist(),
                        "detection_name": CLASS_NAMES[label],
                        "detection_score": float(score),
                        "attribute_name": attribute_name(CLASS_NAMES[label], float(np.hypot(row[7], row[8]))),
                    }
                )
        path = folder / "results.json"
        meta = {f"use_{name}": False for name in ("camera", "lidar", "radar", "map", "external")}
        path.write_text(json.dumps({"meta": meta, "results": results}))
        config = config_factory("detection_cvpr_2019")
        official = DetectionEval(devkit, config, str(path), "mini_val", output_dir=str(folder / "out"), verbose=False)
        summary: dict[str, Any] = official.main(plot_examples=0, render_curves=False)
        return summary


@pytest.mark.parametrize(
    ("name", "speed", "expected"),
    [
        ("car", 0.1, "vehicle.parked"),
        ("car", 0.3, "vehicle.moving"),
        ("bus", 0.0, "vehicle.stopped"),
        ("bus", 2.0, "vehicle.moving"),
        ("pedestrian", 0.1, "pedestrian.standing"),
        ("pedestrian", 1.0, "pedestrian.moving"),
        ("bicycle", 0.1, "cycle.without_rider"),
        ("motorcycle", 3.0, "cycle.with_rider"),
        ("barrier", 3.0, ""),
        ("traffic_cone", 0.0, ""),
    ],
)
def test_attributes_follow_the_speed(name: str, speed: float, expected: str) -> None:
    assert attribute_name(name, speed) == expected


def test_attributes_are_ones_the_benchmark_allows() -> None:
    from nuscenes.eval.detection.utils import detection_name_to_rel_attributes

    for name in CLASS_NAMES:
        for speed in (0.0, 5.0):
            assert attribute_name(name, speed) in (detection_name_to_rel_attributes(name) or [""])


def test_evaluation_is_quiet(reader: NuScenesReader, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(reader, "mini_val", _perfect(reader, "mini_val"))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_only_the_best_boxes_are_handed_in(reader: NuScenesReader) -> None:
    token = reader.tokens("mini_val")[0]
    count = MAX_BOXES + 50
    boxes = Boxes(
        geometry_m9=np.ones((count, 9), np.float32),
        labels_m=np.zeros(count, np.int64),
        scores_m=np.random.default_rng(0).permutation(count).astype(np.float32) / count,
    )
    records = result_records(reader, token, boxes)
    assert len(records) == MAX_BOXES
    assert min(record["detection_score"] for record in records) == pytest.approx(50 / count)


def test_detections_of_other_samples_are_an_error(reader: NuScenesReader) -> None:
    detections = _perfect(reader, "mini_val")
    dropped = dict(list(detections.items())[1:])
    with pytest.raises(DataError, match="1 of split 'mini_val' are missing"):
        evaluate(reader, "mini_val", dropped)
    with pytest.raises(DataError, match="1 are of other splits"):
        evaluate(reader, "mini_val", detections | {reader.tokens("mini_train")[0]: Boxes.empty()})


def test_detections_that_are_not_finite_are_an_error(reader: NuScenesReader) -> None:
    with pytest.raises(DataError, match="NaN"):
        evaluate(reader, "mini_val", _changed(_perfect(reader, "mini_val"), 7, np.nan))


@pytest.mark.parametrize("lost", ["v1.0-mini/visibility.json", "v1.0-mini/log.json", "maps/tiny.png"])
def test_what_only_the_devkit_reads_is_named(broken_nuscenes: Path, lost: str) -> None:
    (broken_nuscenes / lost).unlink()
    broken = NuScenesReader(broken_nuscenes, "v1.0-mini")
    with pytest.raises(DataError, match="devkit cannot load") as caught:
        evaluate(broken, "mini_val", {token: Boxes.empty() for token in broken.tokens("mini_val")})
    assert caught.value.remedy


def test_split_without_truth_is_an_error(broken_nuscenes: Path) -> None:
    (broken_nuscenes / VERSION / "sample_annotation.json").write_text("[]")
    reader = NuScenesReader(broken_nuscenes, VERSION)
    with pytest.raises(DataError, match="no annotated boxes"):
        evaluate(reader, "mini_val", {token: Boxes.empty() for token in reader.tokens("mini_val")})


@pytest.mark.real
def test_real_frame_scores_its_own_truth(real_nuscenes: Path) -> None:
    reader = NuScenesReader(real_nuscenes, VERSION)
    metrics = evaluate(reader, "mysplit", _perfect(reader, "mysplit"))
    for name in ("car", "truck", "barrier", "pedestrian", "traffic_cone"):
        assert metrics.per_class_ap[name] == pytest.approx(1.0, abs=1e-6)
