"""Broken sensor data as a user meets it: `altermoma data info` tells it in words, and so does every other command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from altermoma.cli import app
from altermoma.data.nuscenes import NuScenesReader

VERSION = "v1.0-mini"


def first_file(root: Path, channel: str) -> Path:
    """The sensor file of the first validation frame, which `data info` reads."""
    reader = NuScenesReader(root, VERSION)
    return root / reader.tables.key_exposures[reader.tokens("mini_val")[0]][channel].filename


def lose(root: Path) -> None:
    first_file(root, "LIDAR_TOP").unlink()


def truncate(root: Path) -> None:
    path = first_file(root, "LIDAR_TOP")
    path.write_bytes(path.read_bytes()[:-3])


def spoil(root: Path) -> None:
    path = first_file(root, "LIDAR_TOP")
    points = np.fromfile(path, np.float32)
    points[11] = np.nan
    points.tofile(path)


def blind(root: Path) -> None:
    for path in root.glob("samples/CAM_*/*.jpg"):
        path.write_bytes(path.read_bytes()[:200])


def decalibrate(root: Path) -> None:
    path = root / VERSION / "calibrated_sensor.json"
    rows = json.loads(path.read_text())
    rows[1]["camera_intrinsic"] = [[50.0, 0.0], [0.0, 50.0]]
    path.write_text(json.dumps(rows))


def forget(root: Path) -> None:
    (root / VERSION / "ego_pose.json").unlink()


def info(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["altermoma", "data", "info", str(root)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("damage", "found", "expected"),
    [
        (lose, "no LiDAR file", ".pcd.bin"),
        (truncate, "truncated", "a multiple of 20 bytes"),
        (spoil, "1 of 400 points with NaN", "finite points"),
        (blind, "all 6 cameras are dead", "at least one readable camera"),
        (decalibrate, "camera_intrinsic of calibrated_sensor", "shape (3, 3)"),
        (forget, "no table", "all nuScenes v1.0 tables"),
    ],
)
def test_broken_data_ends_in_words(
    broken_nuscenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    found: str,
    expected: str,
) -> None:
    damage(broken_nuscenes)
    assert info(broken_nuscenes, monkeypatch) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("error: ")
    assert found in said[0]
    assert said[-2].startswith("Expected: ")
    assert expected in said[-2]
    assert said[-1].startswith("What to do: ")


def test_a_dead_camera_and_an_empty_cloud_are_warnings(
    broken_nuscenes: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first_file(broken_nuscenes, "CAM_BACK").unlink()
    first_file(broken_nuscenes, "LIDAR_TOP").write_bytes(b"")
    assert info(broken_nuscenes, monkeypatch) == 0
    told = capfd.readouterr().out
    assert "warning: CAM_BACK is dead" in told
    assert "has no points" in told


@pytest.mark.parametrize("kind", ["a file", "an empty folder"])
def test_a_root_that_is_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    root = tmp_path / "root"
    root.write_text("") if kind == "a file" else root.mkdir()
    assert info(root, monkeypatch) == 1
    told = capfd.readouterr().err
    assert f"no version folder {root / VERSION}" in told
    assert "What to do: " in told
