"""Detections survive the disk, or are named when they did not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from altermoma.errors import StorageError
from altermoma.frames import Boxes
from altermoma.workflow.detections import read_detections, write_detections


def test_round_trip_with_an_empty_frame(tmp_path: Path) -> None:
    some = Boxes(
        geometry_m9=np.arange(18, dtype=np.float32).reshape(2, 9),
        labels_m=np.array([3, 1]),
        scores_m=np.array([0.5, 0.25], np.float32),
    )
    write_detections(tmp_path / "d.npz", {"a": some, "b": Boxes.empty()})
    found = read_detections(tmp_path / "d.npz")
    assert list(found) == ["a", "b"]
    assert len(found["b"]) == 0
    np.testing.assert_array_equal(found["a"].geometry_m9, some.geometry_m9)
    np.testing.assert_array_equal(found["a"].labels_m, some.labels_m)


@pytest.mark.parametrize("kept", [None, 0, 200])
def test_missing_or_cut_files_are_named(tmp_path: Path, kept: int | None) -> None:
    path = tmp_path / "d.npz"
    if kept is not None:
        write_detections(path, {"b": Boxes.empty()})
        path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StorageError, match="missing or damaged"):
        read_detections(path)
