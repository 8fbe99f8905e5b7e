"""Streamed statistics against all values at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from altermoma.calib.statistics import BINS, TensorStatistics, read_statistics, write_statistics
from altermoma.errors import DataError, StorageError


def frames() -> list[np.ndarray]:  # type: ignore[type-arg]
    """The largest magnitude grows from frame to frame; the first is zero."""
    rng = np.random.default_rng(0)
    return [
        np.zeros((2, 5), np.float32),
        *(rng.normal(0, 0.1 * 3**i, (2, 500)).astype(np.float32) for i in range(6)),
    ]


def test_a_grown_histogram_is_that_of_all_values_at_once() -> None:
    statistics = TensorStatistics()
    for frame in frames():
        statistics.add("x", frame)
    everything = np.concatenate([frame.ravel() for frame in frames()]).astype(np.float64)
    assert statistics.reach >= np.abs(everything).max() > statistics.reach / 2
    expected, _ = np.histogram(everything, BINS, (-statistics.reach, statistics.reach))
    np.testing.assert_array_equal(statistics.counts_b, expected)
    assert (statistics.low, statistics.high) == (everything.min(), everything.max())
    assert statistics.counts_b.sum() == everything.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(DataError, match="tensor camera: x holds NaN or infinity"):
        TensorStatistics().add("camera: x", np.array([1.0, bad, 2.0], np.float32))


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    found = {"a": TensorStatistics(), "b": TensorStatistics()}
    for frame in frames():
        for statistics in found.values():
            statistics.add("x", frame)
    write_statistics(tmp_path / "kept.npz", found, ("t1", "t2"))
    again, done = read_statistics(tmp_path / "kept.npz")
    assert done == ("t1", "t2")
    assert list(again) == ["a", "b"]
    np.testing.assert_array_equal(again["b"].counts_b, found["b"].counts_b)
    assert (again["a"].low, again["a"].reach, again["a"].frames) == (
        found["a"].low,
        found["a"].reach,
        len(frames()),
    )
    (tmp_path / "kept.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(StorageError, match="is damaged"):
        read_statistics(tmp_path / "kept.npz")
