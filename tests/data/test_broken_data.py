"""Broken data sets: what ends in an error that helps, and what is carried on with a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from altermoma.data.dataset import FrameDataset
from altermoma.data.nuscenes import NuScenesReader
from altermoma.data.nuscenes_tables import CAMERAS
from altermoma.errors import DataError
from altermoma.geometry import Geometry, ImageGeometry

VERSION = "v1.0-mini"
GEOMETRY = Geometry(image=ImageGeometry(height=32, width=64))


@pytest.fixture
def last(broken_nuscenes: Path) -> str:
    return NuScenesReader(broken_nuscenes, VERSION).tokens("mini_val")[-1]


def _file(root: Path, token: str, channel: str, back: int = 0) -> Path:
    tables = NuScenesReader(root, VERSION).tables
    item = tables.key_exposures[token][channel]
    for _ in range(back):
        item = tables.exposures[item.previous]
    return root / item.filename


def _edit(root: Path, table: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    path = root / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def _kill_missing(path: Path) -> None:
    path.unlink()


def _kill_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


def _kill_empty(path: Path) -> None:
    path.write_bytes(b"")


def _kill_foreign(path: Path) -> None:
    path.write_text("<html>404</html>")


def _kill_black(path: Path) -> None:
    Image.new("RGB", (64, 48)).save(path)


KILLS = [_kill_missing, _kill_truncated, _kill_empty, _kill_foreign, _kill_black]


@pytest.mark.parametrize("kill", KILLS)
def test_one_dead_camera_is_zeros_and_a_warning(broken_nuscenes: Path, last: str, kill: Callable[[Path], None]) -> None:
    path = _file(broken_nuscenes, last, "CAM_BACK")
    before = NuScenesReader(broken_nuscenes, VERSION).read(last)
    kill(path)
    frame = NuScenesReader(broken_nuscenes, VERSION).read(last)
    dead = CAMERAS.index("CAM_BACK")
    assert not frame.images_vhw3[dead].any()
    alive = [i for i in range(6) if i != dead]
    np.testing.assert_array_equal(frame.images_vhw3[alive], before.images_vhw3[alive])
    assert len(frame.warnings) == 1
    assert "CAM_BACK is dead" in frame.warnings[0]
    assert str(path) in frame.warnings[0]
    sample = FrameDataset(NuScenesReader(broken_nuscenes, VERSION), [last], GEOMETRY)[0]
    assert sample.warnings == frame.warnings
    assert all(np.isfinite(sample.inputs[name]).all() for name in sample.inputs)


def test_all_cameras_dead_is_an_error(broken_nuscenes: Path, last: str) -> None:
    for name, kill in zip(CAMERAS, [*KILLS, _kill_missing], strict=True):
        kill(_file(broken_nuscenes, last, name))
    with pytest.raises(DataError, match="all 6 cameras are dead"):
        NuScenesReader(broken_nuscenes, VERSION).read(last)


def test_cameras_of_two_sizes_are_an_error(broken_nuscenes: Path, last: str) -> None:
    Image.new("RGB", (32, 24), "white").save(_file(broken_nuscenes, last, "CAM_FRONT_LEFT"))
    with pytest.raises(DataError, match="CAM_FRONT_LEFT 24x32"):
        NuScenesReader(broken_nuscenes, VERSION).read(last)


def test_empty_cloud_is_a_warning(broken_nuscenes: Path, last: str) -> None:
    for back in range(3):
        _file(broken_nuscenes, last, "LIDAR_TOP", back).write_bytes(b"")
    reader = NuScenesReader(broken_nuscenes, VERSION, sweeps=3)
    frame = reader.read(last)
    assert frame.points_p5.shape == (0, 5)
    assert len(frame.warnings) == 1
    assert "no points" in frame.warnings[0]
    sample = FrameDataset(reader, [last], GEOMETRY)[0]
    assert not sample.inputs["depth"].any()


@pytest.mark.parametrize("back", [0, 2])
def test_truncated_sweep_is_an_error(broken_nuscenes: Path, last: str, back: int) -> None:
    path = _file(broken_nuscenes, last, "LIDAR_TOP", back)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"7993 bytes") as caught:
        NuScenesReader(broken_nuscenes, VERSION).read(last)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("back", [0, 1])
def test_missing_sweep_is_an_error(broken_nuscenes: Path, last: str, back: int) -> None:
    path = _file(broken_nuscenes, last, "LIDAR_TOP", back)
    path.unlink()
    with pytest.raises(DataError, match="no LiDAR file") as caught:
        NuScenesReader(broken_nuscenes, VERSION).read(last)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_points_that_are_not_finite_are_counted(broken_nuscenes: Path, last: str, value: float) -> None:
    path = _file(broken_nuscenes, last, "LIDAR_TOP")
    points = np.fromfile(path, np.float32).reshape(-1, 5)
    points[[3, 8, 9], [0, 2, 3]] = value
    points.tofile(path)
    with pytest.raises(DataError, match=f"{path.name} has 3 of 400 points"):
        NuScenesReader(broken_nuscenes, VERSION).read(last)


@pytest.mark.parametrize(
    ("table", "row", "field", "value", "message"),
    [
        ("calibrated_sensor", 2, "camera_intrinsic", [[1, 0], [0, 1]], r"shape \(2, 2\)"),
        ("calibrated_sensor", 2, "camera_intrinsic", [], r"shape \(0,\)"),
        ("calibrated_sensor", 2, "camera_intrinsic", [[1, 0, 0], [0, 1], [0, 0, 1]], "camera_intrinsic"),
        ("calibrated_sensor", 2, "camera_intrinsic", [[0, 0, 0], [0, 0, 0], [0, 0, 1]], "camera_intrinsic"),
        ("calibrated_sensor", 0, "rotation", [1, 0, 0], r"shape \(3,\)"),
        ("calibrated_sensor", 0, "rotation", [0, 0, 0, 0], "unit quaternion"),
        ("calibrated_sensor", 3, "translation", [0, "x", 1], "translation of calibrated_sensor"),
        ("calibrated_sensor", 3, "translation", [0, float("nan"), 1], "translation of calibrated_sensor"),
    ],
)
def test_wrong_calibration_is_an_error(
    broken_nuscenes: Path, table: str, row: int, field: str, value: object, message: str
) -> None:
    _edit(broken_nuscenes, table, lambda rows: rows[row].update({field: value}))
    with pytest.raises(DataError, match=message) as caught:
        NuScenesReader(broken_nuscenes, VERSION).tokens("mini_val")
    assert f"{table}-{row}" in str(caught.value)
    assert caught.value.remedy


def test_wrong_pose_is_an_error(broken_nuscenes: Path, last: str) -> None:
    _edit(broken_nuscenes, "ego_pose", lambda rows: [r.update(translation=[1, 2]) for r in rows])
    with pytest.raises(DataError, match="translation of ego_pose"):
        NuScenesReader(broken_nuscenes, VERSION).read(last)


@pytest.mark.parametrize("table", ["sample", "sample_data", "ego_pose", "sample_annotation", "sensor", "scene"])
def test_missing_table_is_an_error(broken_nuscenes: Path, table: str) -> None:
    (broken_nuscenes / VERSION / f"{table}.json").unlink()
    with pytest.raises(DataError, match=rf"no table .*/{table}\.json"):
        NuScenesReader(broken_nuscenes, VERSION).tokens("mini_val")


def test_truncated_table_is_an_error(broken_nuscenes: Path) -> None:
    path = broken_nuscenes / VERSION / "sample_data.json"
    path.write_text(path.read_text()[:5000])
    with pytest.raises(DataError, match="not valid JSON"):
        NuScenesReader(broken_nuscenes, VERSION).tokens("mini_val")


@pytest.mark.parametrize("text", ['{"token": "a"}', "3"])
def test_table_that_is_no_list_is_an_error(broken_nuscenes: Path, text: str) -> None:
    (broken_nuscenes / VERSION / "scene.json").write_text(text)
    with pytest.raises(DataError, match=r"scene\.json"):
        NuScenesReader(broken_nuscenes, VERSION).tokens("mini_val")


def test_record_that_refers_to_nothing_is_an_error(broken_nuscenes: Path) -> None:
    _edit(broken_nuscenes, "instance", lambda rows: rows[3].update(category_token="gone"))
    with pytest.raises(DataError, match=r"instance-3.*gone"):
        NuScenesReader(broken_nuscenes, VERSION).tokens("mini_val")


@pytest.mark.parametrize("size", [[1, 2], [1, 2, 0], [1, 2, float("nan")]])
def test_wrong_box_size_is_an_error(broken_nuscenes: Path, size: list[float]) -> None:
    _edit(broken_nuscenes, "sample_annotation", lambda rows: rows[5].update(size=size))
    with pytest.raises(DataError, match="sample_annotation-5 has size") as caught:
        NuScenesReader(broken_nuscenes, VERSION).tokens("mini_val")
    assert caught.value.remedy


@pytest.mark.parametrize("folder", ["v1.0-mini/scene.json", "samples/LIDAR_TOP"])
def test_what_cannot_be_read_is_no_matter_of_writing(broken_nuscenes: Path, last: str, folder: str) -> None:
    """A folder in the place of a file stands for whatever the system refuses."""
    path = broken_nuscenes / folder
    path = _file(broken_nuscenes, last, "LIDAR_TOP") if path.is_dir() else path
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=path.name):
        NuScenesReader(broken_nuscenes, VERSION).read(last)


def test_sample_without_a_camera_is_an_error(broken_nuscenes: Path, last: str) -> None:
    name = _file(broken_nuscenes, last, "CAM_FRONT").relative_to(broken_nuscenes).as_posix()
    _edit(broken_nuscenes, "sample_data", lambda rows: [rows.remove(r) for r in list(rows) if r["filename"] == name])
    with pytest.raises(DataError, match="no key frame of CAM_FRONT"):
        NuScenesReader(broken_nuscenes, VERSION).read(last)


@pytest.mark.parametrize("split", ["nonsense", "custom2", ""])
def test_unknown_split_lists_the_known(tiny_nuscenes: Path, split: str) -> None:
    with pytest.raises(DataError, match="unknown split") as caught:
        NuScenesReader(tiny_nuscenes, VERSION).tokens(split)
    assert "mini_val" in str(caught.value)
    assert "custom" in str(caught.value)


@pytest.mark.parametrize("split", ["val", "train", "test"])
def test_split_of_another_version_is_an_error(tiny_nuscenes: Path, split: str) -> None:
    with pytest.raises(DataError, match=r"asked of version 'v1\.0-mini'"):
        NuScenesReader(tiny_nuscenes, VERSION).tokens(split)


def test_split_without_its_scenes_is_an_error(broken_nuscenes: Path) -> None:
    _edit(broken_nuscenes, "scene", lambda rows: [r.update(name="scene-9999") for r in rows])
    with pytest.raises(DataError, match="no scene of split 'mini_val'"):
        NuScenesReader(broken_nuscenes, VERSION).tokens("mini_val")


def test_wrong_version_names_the_versions_that_are_there(tiny_nuscenes: Path) -> None:
    with pytest.raises(DataError, match="no version folder") as caught:
        NuScenesReader(tiny_nuscenes, "v1.0-trainval")
    assert VERSION in caught.value.remedy


def test_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no version folder"):
        NuScenesReader(tmp_path / "nowhere", VERSION)


def test_set_without_annotations_has_no_truth(broken_nuscenes: Path, last: str) -> None:
    _edit(broken_nuscenes, "sample_annotation", lambda rows: rows.clear())
    reader = NuScenesReader(broken_nuscenes, VERSION)
    assert reader.read(last).truth is None
    assert len(FrameDataset(reader, [last], GEOMETRY)[0].truth) == 0


def test_unknown_token_is_an_error(tiny_nuscenes: Path) -> None:
    with pytest.raises(DataError, match="no sample 'gone'"):
        NuScenesReader(tiny_nuscenes, VERSION).read("gone")


def test_no_sweeps_is_an_error(tiny_nuscenes: Path) -> None:
    with pytest.raises(DataError, match="sweeps = 0"):
        NuScenesReader(tiny_nuscenes, VERSION, sweeps=0)
