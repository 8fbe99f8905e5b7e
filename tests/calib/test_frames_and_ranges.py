"""Calibration sets and range files: what they choose, what they prove, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_inputs import random_points, ring_calibration

from altermoma.calib.coverage import cover
from altermoma.calib.frames import (
    FrameManifest,
    check_frame,
    choose_frames,
    describe,
    read_manifest,
    write_manifest,
)
from altermoma.calib.ranges import Ranges, from_text
from altermoma.calib.scales import Range
from altermoma.calib.settings import CalibrationSettings, load_settings, read_settings
from altermoma.errors import DataError, RecipeError
from altermoma.frames import CLASS_NAMES, Boxes, Frame
from altermoma.models.config import ModelConfig

GEOMETRY = ModelConfig().geometry


def frame(token: str, *, label: int, distance: float, light: int, points: int) -> Frame:
    images = np.full((6, 96, 256, 3), light, np.uint8)
    box = np.array([[distance, 0, 0, 4, 2, 1.5, 0, 0, 0]], np.float32)
    return Frame(
        token=token,
        scene="scene",
        images_vhw3=images,
        points_p5=random_points(points),
        calibration=ring_calibration(image_hw=(96, 256)),
        ego_from_lidar_44=np.eye(4),
        global_from_ego_44=np.eye(4),
        truth=Boxes(geometry_m9=box, labels_m=np.array([label]), scores_m=np.ones(1, np.float32)),
    )


class Drive:
    """Twenty frames: mostly cars by day, one bus and one night."""

    def __init__(self) -> None:
        self.frames = {
            f"t{i:02d}": frame(
                f"t{i:02d}",
                label=3 if i == 11 else 0,
                distance=35.0 if i % 5 == 0 else 10.0,
                light=5 if i == 17 else 120,
                points=100 + 10 * i,
            )
            for i in range(20)
        }

    def read(self, token: str) -> Frame:
        return self.frames[token]


def manifest(count: int = 4) -> FrameManifest:
    drive = Drive()
    frames = choose_frames(drive, list(drive.frames), GEOMETRY, count=count, pool=20)
    return FrameManifest(version="v", split="train", sweeps=3, frames=frames)


def test_the_chosen_frames_show_what_is_rare() -> None:
    found = manifest()
    assert {"t11", "t17"} <= set(found.tokens)
    assert {name for item in found.frames for name in item.classes} == {CLASS_NAMES[0], CLASS_NAMES[3]}
    assert {band for item in found.frames for band in item.bands} == {"near", "middle"}
    assert found == manifest()


def test_cover_takes_each_rarest_feature_first() -> None:
    features = [frozenset("a"), frozenset("a"), frozenset("ab"), frozenset("c"), frozenset("a")]
    assert cover(features, 2) == [2, 3]
    assert cover(features, 5) == [0, 1, 2, 3, 4]


def test_fewer_frames_than_wanted_are_an_error() -> None:
    drive = Drive()
    with pytest.raises(DataError, match="20 frames to calibrate with"):
        choose_frames(drive, list(drive.frames), GEOMETRY, count=21, pool=21)


def test_a_manifest_comes_back_and_notices_other_frames(tmp_path: Path) -> None:
    found = manifest()
    write_manifest(tmp_path / "frames.json", found)
    assert read_manifest(tmp_path / "frames.json") == found
    drive = Drive()
    check_frame(drive.read(found.tokens[0]), found.frames[0])
    changed = dataclasses.replace(drive.read(found.tokens[0]), points_p5=random_points(5))
    with pytest.raises(DataError, match="its SHA-256 differs"):
        check_frame(changed, found.frames[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": []}, "names no frames"),
        ({"schema": 9}, "has schema 9"),
        ({"key": "0" * 12}, "was altered"),
        ({"frames": [{"token": "t"}]}, "is no calibration manifest"),
    ],
)
def test_bad_manifests_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "frames.json"
    path.write_text(json.dumps(manifest().to_dict() | change), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_other_files_are_no_manifests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no calibration manifest"):
        read_manifest(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("frames", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_manifest(tmp_path / "text.json")


def ranges() -> Ranges:
    return Ranges(
        model="tiny",
        graphs={"camera": "a1", "head": "b2"},
        manifest="m",
        frames=4,
        settings=CalibrationSettings().to_dict(),
        tensors={"camera": {"x": Range(low=-1.0, high=2.5)}},
    )


def test_ranges_come_back_as_they_were() -> None:
    assert from_text(ranges().to_text(), "file") == ranges()


def test_ranges_hold_for_one_model_cut_and_set_of_frames() -> None:
    graphs = {"camera": "a1", "head": "b2"}
    ranges().check("tiny", graphs, "m")
    for model, given, frames, message in (
        ("other", graphs, "m", "of model tiny"),
        ("tiny", {"camera": "a1"}, "m", "of stages camera, head"),
        ("tiny", graphs | {"head": "new"}, "m", "stale: stage head has changed"),
        ("tiny", graphs, "n", "of calibration frames m"),
    ):
        with pytest.raises(DataError, match=message):
            ranges().check(model, given, frames)


@pytest.mark.parametrize("pair", [[0.0, 0.0], [1.0, 2.0], ["a", 1.0], [1.0]])
def test_ranges_that_are_none_are_refused(pair: list[object]) -> None:
    record = json.loads(ranges().to_text())
    record["tensors"]["camera"]["x"] = pair
    with pytest.raises(DataError, match="file"):
        from_text(json.dumps(record), "file")


def test_shipped_recipes_can_be_read_and_others_are_named() -> None:
    assert load_settings("synthetic").keeps("head/bbox_head/decoder.0")
    assert not load_settings("nuscenes").keeps("head/bbox_head/heatmap_head")
    with pytest.raises(RecipeError, match="did you mean nuscenes"):
        load_settings("nuscene")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method = 'median'", "method = 'median'"),
        ("frames = 0", "frames = 0"),
        ("percentile = 20.0", "percentile = 20"),
        ("keep = ['(']", r"keep: '\('"),
        ("schema = 2", "schema 2"),
        ("frame = 3", "unknown recipe key"),
        ("x = ", "not valid TOML"),
    ],
)
def test_bad_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        read_settings(tmp_path / "own.toml")


def test_describing_a_frame_counts_its_voxels() -> None:
    from altermoma.ops.prepare import FramePreparer

    drive = Drive()
    found = describe(drive.read("t05"), GEOMETRY)
    assert found.voxels == len(FramePreparer(GEOMETRY).prepare(drive.read("t05"))["voxels"]) - 3
