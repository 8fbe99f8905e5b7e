"""The synthetic world in the eyes of the unmodified nuscenes-devkit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altermoma.data.synth import write_world
from altermoma.data.synth.mounting import CAMERAS, RADARS
from altermoma.data.synth.splits import MINI_TRAIN, MINI_VAL, MORE_TRAIN
from altermoma.frames import CLASS_NAMES

KEYFRAMES = 4


@pytest.fixture(scope="module", autouse=True)
def _foreign_warnings() -> Iterator[None]:
    """The devkit and its dependencies warn about themselves; that is not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, one of each mini split."""
    return write_world(tmp_path_factory.mktemp("synth") / "world", scenes=2, keyframes=KEYFRAMES, jobs=1)


@pytest.fixture(scope="module")
def nusc(root: Path) -> Any:
    from nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(root), verbose=False)


def test_tables_link_up(nusc: Any, capsys: pytest.CaptureFixture[str]) -> None:
    nusc.list_scenes()
    assert {"scene-0061", "scene-0103"} == {line[:10] for line in capsys.readouterr().out.splitlines()}
    for scene in nusc.scene:
        sample, count = nusc.get("sample", scene["first_sample_token"]), 1
        while sample["next"]:
            following = nusc.get("sample", sample["next"])
            assert following["prev"] == sample["token"]
            assert following["timestamp"] - sample["timestamp"] == 500_000
            sample, count = following, count + 1
        assert sample["token"] == scene["last_sample_token"]
        assert count == scene["nbr_samples"] == KEYFRAMES
        assert set(sample["data"]) == {"LIDAR_TOP", *(m.channel for m in (*CAMERAS, *RADARS))}


def test_annotation_chains(nusc: Any) -> None:
    for instance in nusc.instance:
        annotation, count = nusc.get("sample_annotation", instance["first_annotation_token"]), 1
        while annotation["next"]:
            annotation, count = nusc.get("sample_annotation", annotation["next"]), count + 1
            assert annotation["instance_token"] == instance["token"]
        assert annotation["token"] == instance["last_annotation_token"]
        assert count == instance["nbr_annotations"]


def test_sweeps_come_between_key_frames(nusc: Any) -> None:
    for sample in nusc.sample:
        chain = [nusc.get("sample_data", sample["data"]["LIDAR_TOP"])]
        for _ in range(2):
            chain.append(nusc.get("sample_data", chain[-1]["prev"]))
            assert not chain[-1]["is_key_frame"]
        assert [chain[0]["timestamp"] - c["timestamp"] for c in chain] == [0, 50_000, 100_000]
        assert all((Path(nusc.dataroot) / c["filename"]).is_file() for c in chain)


def test_lidar_counts_are_the_devkits(nusc: Any) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    counted = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            inside = int(points_in_box(box, points).sum())
            assert inside == nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            counted += inside
    assert counted > 1000


def test_sweeps_of_standing_things_agree(nusc: Any) -> None:
    """Points of earlier sweeps fall into the boxes of parked vehicles once the ego motion is undone."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    single, merged = 0, 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        sweeps, _ = LidarPointCloud.from_file_multisweep(nusc, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=3)
        for box in boxes:
            annotation = nusc.get("sample_annotation", box.token)
            names = [nusc.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
            if names == ["vehicle.parked"]:
                single += int(points_in_box(box, points).sum())
                merged += int(points_in_box(box, sweeps.points[:3]).sum())
    assert merged == pytest.approx(3 * single, rel=0.1)


def test_velocities_follow_the_tracks(nusc: Any) -> None:
    moving = 0
    for annotation in nusc.sample_annotation:
        velocity = nusc.box_velocity(annotation["token"])[:2]
        names = [nusc.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
        if np.isnan(velocity).any() or not names:
            continue
        speed = float(np.hypot(*velocity))
        if names[0] in ("vehicle.moving", "cycle.with_rider", "pedestrian.moving"):
            moving += 1
            assert 0.3 < speed < 10.0
            w, _, _, z = annotation["rotation"]
            yaw = 2 * np.arctan2(z, w)
            assert np.cos(yaw - np.arctan2(velocity[1], velocity[0])) > 0.98
        else:
            assert speed < 1e-6
    assert moving > 20


def test_all_classes_in_every_scene_and_within_reach(nusc: Any) -> None:
    from nuscenes.eval.detection.utils import category_to_detection_name

    seen: dict[str, set[str]] = {scene["token"]: set() for scene in nusc.scene}
    for annotation in nusc.sample_annotation:
        sample = nusc.get("sample", annotation["sample_token"])
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        ego = nusc.get("ego_pose", lidar["ego_pose_token"])["translation"]
        assert np.hypot(*np.subtract(annotation["translation"], ego)[:2]) <= 31.0
        seen[sample["scene_token"]].add(category_to_detection_name(annotation["category_name"]))
    assert all(classes == set(CLASS_NAMES) for classes in seen.values())


def test_boxes_do_not_overlap(nusc: Any) -> None:
    """Footprints by shapely, which shares no code with the layout's own check."""
    from shapely.geometry import Polygon

    for sample in nusc.sample:
        boxes = [nusc.get_box(token) for token in sample["anns"]]
        shapes = [Polygon(box.bottom_corners()[:2].T) for box in boxes]
        shared = [a.intersection(b).area for i, a in enumerate(shapes) for b in shapes[:i]]
        assert max(shared) == 0.0


def test_radar_files(nusc: Any) -> None:
    from nuscenes.utils.data_classes import RadarPointCloud

    for sample in nusc.sample:
        for mount in RADARS:
            points = RadarPointCloud.from_file(nusc.get_sample_data_path(sample["data"][mount.channel])).points
            assert points.shape[0] == 18
            assert points.shape[1] >= 1
            assert np.isfinite(points).all()
            assert np.hypot(points[0], points[1]).max() < 110.0
    assert sum(a["num_radar_pts"] for a in nusc.sample_annotation) > 50


def test_pictures_show_the_object_where_the_box_projects(nusc: Any) -> None:
    """Barriers and traffic cones are red or orange at the pixels that their box's centre projects to."""
    from nuscenes.utils.geometry_utils import view_points
    from PIL import Image

    warm = []
    for sample in nusc.sample:
        for mount in CAMERAS:
            path, boxes, matrix = nusc.get_sample_data(sample["data"][mount.channel])
            picture = np.asarray(Image.open(path)).astype(int)
            assert picture.shape == (360, 640, 3)
            for box in boxes:
                clear = nusc.get("sample_annotation", box.token)["visibility_token"] == "4"
                if box.name != "movable_object.trafficcone" or not clear or box.center[2] > 20:
                    continue
                # The stripe around the middle is white; a quarter of the height up, a cone is orange.
                low = box.center + np.array([0.0, 0.2 * box.wlh[2], 0.0])
                u, v = view_points(low[:, None], matrix, normalize=True)[:2, 0].round().astype(int)
                if 0 <= u < 640 and 0 <= v < 360:
                    r, _, b = picture[v, u]
                    warm.append(r > 1.5 * b)
    assert len(warm) >= 5
    assert np.mean(warm) > 0.9


def test_official_evaluation_of_the_truth_is_perfect(nusc: Any, tmp_path: Path) -> None:
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.loaders import load_gt
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    truth = load_gt(nusc, "mini_val", DetectionBox).serialize()
    for boxes in truth.values():
        for box in boxes:
            box["detection_score"] = 0.5
            box["velocity"] = [0.0 if np.isnan(v) else float(v) for v in box["velocity"]]
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": meta, "results": truth}))
    config = config_factory("detection_cvpr_2019")
    judge = DetectionEval(nusc, config, str(path), "mini_val", output_dir=str(tmp_path), verbose=False)
    metrics, _ = judge.evaluate()
    assert metrics.mean_ap > 0.99
    assert metrics.nd_score > 0.98


def test_custom_splits_and_names(root: Path, nusc: Any) -> None:
    from nuscenes.utils.splits import create_splits_scenes, get_scenes_of_split

    assert get_scenes_of_split("synth_train", nusc) == ["scene-0061"]
    assert get_scenes_of_split("synth_val", nusc) == ["scene-0103"]
    official = create_splits_scenes()
    assert list(MINI_TRAIN) == official["mini_train"]
    assert list(MINI_VAL) == official["mini_val"]
    assert set(MORE_TRAIN) <= set(official["train"]) - set(MINI_TRAIN)
    assert len(set(MORE_TRAIN)) == len(MORE_TRAIN)


def test_map_mask_is_drivable_under_the_ego(nusc: Any) -> None:
    from PIL import Image

    for scene in nusc.scene:
        record = next(m for m in nusc.map if scene["log_token"] in m["log_tokens"])
        mask = np.asarray(Image.open(Path(nusc.dataroot) / record["filename"]))
        sample = nusc.get("sample", scene["first_sample_token"])
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, _ = nusc.get("ego_pose", lidar["ego_pose_token"])["translation"]
        assert mask[mask.shape[0] - 1 - int(y / 0.1), int(x / 0.1)] == 255
        assert 0.05 < (mask == 255).mean() < 0.9
