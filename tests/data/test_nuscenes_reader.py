"""The reader against the nuscenes-devkit, on a tiny random data set with tilts and tracks and on one real frame."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altermoma.data.nuscenes import MINI_TRAIN, MINI_VAL, NuScenesReader
from altermoma.data.nuscenes_tables import CLASS_OF_CATEGORY
from altermoma.frames import CLASS_NAMES

VERSION = "v1.0-mini"


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.real)])
def pair(request: pytest.FixtureRequest) -> tuple[NuScenesReader, Any]:
    """Our reader and the devkit on the same data."""
    root: Path = request.getfixturevalue(f"{request.param}_nuscenes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nuscenes import NuScenes

        return NuScenesReader(root, VERSION, sweeps=4), NuScenes(VERSION, str(root), verbose=False)


def test_boxes_match_the_devkit(pair: tuple[NuScenesReader, Any]) -> None:
    from nuscenes.eval.common.utils import quaternion_yaw
    from nuscenes.eval.detection.utils import category_to_detection_name

    reader, devkit = pair
    for sample in devkit.sample:
        _, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
        boxes = [b for b in boxes if category_to_detection_name(b.name)]
        truth, points = reader.truth(sample["token"])
        assert len(truth) == len(boxes) > 0
        key = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        pose = devkit.get("ego_pose", key["ego_pose_token"])["rotation"]
        mount = devkit.get("calibrated_sensor", key["calibrated_sensor_token"])["rotation"]
        for row, label, count, box in zip(truth.geometry_m9, truth.labels_m, points, boxes, strict=True):
            record = devkit.get("sample_annotation", box.token)
            np.testing.assert_allclose(row[:3], box.center, atol=1e-4)
            np.testing.assert_allclose(row[3:6], box.wlh[[1, 0, 2]], atol=1e-6)
            assert abs(np.angle(np.exp(1j * (row[6] - quaternion_yaw(box.orientation))))) < 1e-5
            assert CLASS_NAMES[label] == category_to_detection_name(box.name)
            assert count == record["num_lidar_pts"] + record["num_radar_pts"]
            np.testing.assert_allclose(row[7:9], _velocity(devkit, box.token, pose, mount), atol=1e-4)


def _velocity(devkit: Any, token: str, pose: list[float], mount: list[float]) -> np.ndarray:
    from pyquaternion import Quaternion

    velocity = devkit.box_velocity(token)
    velocity[2] = 0
    if np.isnan(velocity).any():
        return np.full(2, np.nan)
    return Quaternion(mount).inverse.rotate(Quaternion(pose).inverse.rotate(velocity))[:2]


def test_global_velocity_matches_the_devkit(tiny_nuscenes: Path, pair: tuple[NuScenesReader, Any]) -> None:
    reader, devkit = pair
    for record in devkit.sample_annotation:
        np.testing.assert_allclose(reader.velocity(record["token"]), devkit.box_velocity(record["token"]), atol=1e-9)
    if reader.root == tiny_nuscenes:
        known = [np.isfinite(reader.velocity(r["token"])).all() for r in devkit.sample_annotation]
        assert any(known)


@pytest.mark.parametrize("sweeps", [1, 2, 4, 9])
def test_sweeps_match_the_devkit(pair: tuple[NuScenesReader, Any], sweeps: int) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud

    reader, devkit = pair
    reader = NuScenesReader(reader.root, VERSION, sweeps=sweeps)
    for sample in (devkit.sample[0], devkit.sample[-1]):
        points = reader.read(sample["token"]).points_p5
        cloud, lags = LidarPointCloud.from_file_multisweep(devkit, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=sweeps)
        # The devkit also removes the key sweep's close points; BEVFusion and this reader keep them.
        close = (np.abs(points[:, :2]) < 1.0).all(axis=1) & (points[:, 4] == 0)
        ours = points[~close]
        np.testing.assert_allclose(ours[:, :4], cloud.points.T, atol=2e-4)
        np.testing.assert_allclose(ours[:, 4], lags[0], atol=1e-6)
        assert points.dtype == np.float32


def test_sweeps_of_a_later_frame_are_merged(tiny_nuscenes: Path) -> None:
    reader = NuScenesReader(tiny_nuscenes, VERSION, sweeps=3)
    token = reader.tokens("mini_val")[-1]
    lags = np.unique(reader.read(token).points_p5[:, 4])
    np.testing.assert_allclose(lags, [0, 1 / 6, 1 / 3], atol=1e-5)


def test_a_frame_without_earlier_sweeps_repeats_its_key_sweep(tiny_nuscenes: Path) -> None:
    """As mmdet3d's LoadPointsFromMultiSweeps with pad_empty_sweeps and remove_close; others are as they were."""
    once, often = (NuScenesReader(tiny_nuscenes, VERSION, sweeps=4, repeat_key=repeat) for repeat in (False, True))
    alone = [token for token in once.tokens("mini_val") if not once.read(token).points_p5[:, 4].any()]
    assert alone
    key, padded = once.read(alone[0]).points_p5, often.read(alone[0]).points_p5
    far = key[~((np.abs(key[:, 0]) < 1.0) & (np.abs(key[:, 1]) < 1.0))]
    np.testing.assert_array_equal(padded, np.concatenate([key, far, far, far]))
    merged = once.tokens("mini_val")[-1]
    np.testing.assert_array_equal(once.read(merged).points_p5, often.read(merged).points_p5)


def test_projections_match_the_devkit(pair: tuple[NuScenesReader, Any]) -> None:
    reader, devkit = pair
    reader = NuScenesReader(reader.root, VERSION, sweeps=1)
    for sample in (devkit.sample[0], devkit.sample[-1]):
        frame = reader.read(sample["token"])
        calibration, points = frame.calibration, frame.points_p5
        for view, name in enumerate(calibration.camera_names):
            camera = sample["data"][name]
            expected, depth, image = devkit.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], camera)
            np.testing.assert_array_equal(np.asarray(image), frame.images_vhw3[view])
            moved = points[:, :3] @ calibration.camera_from_lidar_v44[view, :3, :3].T
            moved = moved + calibration.camera_from_lidar_v44[view, :3, 3]
            front = moved[moved[:, 2] > 1.0]
            pixels = front @ calibration.intrinsics_v33[view].T
            pixels = pixels[:, :2] / pixels[:, 2:]
            height, width = calibration.image_hw
            seen = ((pixels > 1) & (pixels < (width - 1, height - 1))).all(axis=1)
            # A point on the border may fall either way in float32; on both sides all others must pair up.
            near = _nearest(expected[:2].T, pixels[seen])
            assert abs(int(seen.sum()) - expected.shape[1]) <= 2
            assert (near < 0.02).mean() > 0.99
            np.testing.assert_allclose(np.median(depth), np.median(front[seen, 2]), rtol=1e-2)


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(a).query(b)[0])


def test_poses_match_the_devkit(pair: tuple[NuScenesReader, Any]) -> None:
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    reader, devkit = pair
    for sample in devkit.sample:
        frame = reader.read(sample["token"])
        key = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        for ours, table, token in (
            (frame.ego_from_lidar_44, "calibrated_sensor", key["calibrated_sensor_token"]),
            (frame.global_from_ego_44, "ego_pose", key["ego_pose_token"]),
        ):
            record = devkit.get(table, token)
            theirs = transform_matrix(record["translation"], Quaternion(record["rotation"]))
            np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_splits_and_classes_match_the_devkit(tiny_nuscenes: Path) -> None:
    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    assert sorted(MINI_TRAIN) == sorted(splits["mini_train"])
    assert sorted(MINI_VAL) == sorted(splits["mini_val"])
    for category, name in CLASS_OF_CATEGORY.items():
        assert category_to_detection_name(category) == name
    reader = NuScenesReader(tiny_nuscenes, VERSION)
    assert reader.tokens("custom") == reader.tokens("mini_val") == [f"sample-{i}" for i in range(4, 8)]
    assert reader.tokens("mini_train") == [f"sample-{i}" for i in range(4)]


@pytest.mark.real
def test_real_frame_reads_whole(real_nuscenes: Path) -> None:
    reader = NuScenesReader(real_nuscenes, VERSION)
    frame = reader.read(reader.tokens("mysplit")[0])
    assert frame.images_vhw3.shape == (6, 900, 1600, 3)
    assert frame.points_p5.shape == (34688, 5)
    assert frame.calibration.camera_names[:2] == ("CAM_FRONT", "CAM_FRONT_RIGHT")
    assert frame.truth is not None
    assert len(frame.truth) == 69
    assert frame.warnings == ()
    assert frame.scene == "scene-0061"


def test_trainval_and_test_versions(broken_nuscenes: Path) -> None:
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    tables = broken_nuscenes / VERSION
    scenes = json.loads((tables / "scene.json").read_text())
    for version, chosen in (("v1.0-trainval", ("train", "val")), ("v1.0-test", ("test", "test"))):
        for index, (scene, split) in enumerate(zip(scenes, chosen, strict=True)):
            scene["name"] = splits[split][index]
        shutil.copytree(tables, broken_nuscenes / version)
        (broken_nuscenes / version / "scene.json").write_text(json.dumps(scenes))
    trainval = NuScenesReader(broken_nuscenes, "v1.0-trainval")
    assert trainval.tokens("train") == [f"sample-{i}" for i in range(4)]
    assert trainval.tokens("val") == [f"sample-{i}" for i in range(4, 8)]
    assert len(trainval.read("sample-5").points_p5) > 400
    assert len(NuScenesReader(broken_nuscenes, "v1.0-test").tokens("test")) == 8


def test_scene_order_is_the_tables_and_frames_are_in_time(broken_nuscenes: Path) -> None:
    path = broken_nuscenes / VERSION / "sample.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(rows[::-1]))
    splits = {"both": ["scene-0103", "scene-0061"]}
    (path.parent / "splits.json").write_text(json.dumps(splits))
    assert NuScenesReader(broken_nuscenes, VERSION).tokens("both") == [f"sample-{i}" for i in range(8)]
