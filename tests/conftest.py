"""Fixtures shared by all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_nuscenes import write_tiny_nuscenes

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
"""Real sensor frames beside the checkout; tests that need them are skipped where they are missing."""


@pytest.fixture(scope="session")
def tiny_nuscenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a tiny random nuScenes data set. Do not write into it: see `broken_nuscenes`."""
    return write_tiny_nuscenes(tmp_path_factory.mktemp("nuscenes") / "tiny")


@pytest.fixture
def broken_nuscenes(tiny_nuscenes: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set to damage."""
    return Path(shutil.copytree(tiny_nuscenes, tmp_path / "broken"))


@pytest.fixture(scope="session")
def real_nuscenes() -> Path:
    """Root of one real nuScenes frame (version v1.0-mini, split `mysplit`)."""
    root = REAL / "nuscenes_one_frame"
    if not root.is_dir():
        pytest.skip(f"no real frames at {root}")
    return root


@pytest.fixture(scope="session")
def real_sweeps() -> np.ndarray:
    """Ten real nuScenes sweeps: float32 [271156, 5], x, y, z (m, LiDAR frame), intensity, time lag (s)."""
    path = REAL / "nuscenes_ten_sweeps.bin"
    if not path.is_file():
        pytest.skip(f"no real sweeps at {path}")
    return np.fromfile(path, np.float16).reshape(-1, 5).astype(np.float32)
