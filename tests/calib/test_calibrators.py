"""Calibrators against plain float64 searches over the values themselves, and against onnxruntime's where they agree."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

from altermoma.calib.calibrators import LEAST_FRAMES, calibrate, divergence, magnitudes
from altermoma.calib.scales import LARGEST
from altermoma.calib.statistics import BINS, TensorStatistics
from altermoma.errors import DataError

Values = NDArray[np.float32]


def values(kind: str, count: int = 60_000) -> Values:
    rng = np.random.default_rng(3)
    found = {
        "relu": np.maximum(rng.normal(0, 1, count), 0),
        "both signs": rng.normal(0.3, 1.0, count),
        "outliers": np.concatenate([rng.normal(0, 0.2, count), rng.uniform(-9, 9, 12)]),
        "negative": -np.abs(rng.normal(0, 2.0, count)),
    }[kind]
    return found.astype(np.float32)


KINDS = ("relu", "both signs", "outliers", "negative")


def observed(data: Values, frames: int = 8) -> TensorStatistics:
    statistics = TensorStatistics()
    for part in np.array_split(data, frames):
        statistics.add("x", part)
    return statistics


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_the_extremes(kind: str) -> None:
    data = values(kind)
    found = calibrate("x", observed(data), "minmax", 99.0)
    assert found.low == pytest.approx(min(0.0, float(data.min())))
    assert found.high == pytest.approx(max(0.0, float(data.max())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [99.0, 99.9])
def test_percentile_is_that_of_the_sorted_values_to_a_bin(kind: str, percentile: float) -> None:
    data = values(kind).astype(np.float64)
    statistics = observed(values(kind))
    found = calibrate("x", statistics, "percentile", percentile)
    tail, width = (1 - percentile / 100) / 2, 2 * statistics.reach / BINS
    assert (data > found.high).mean() <= tail + 1e-9
    assert (data < found.low).mean() <= tail + 1e-9
    # One bin less would leave out more than that.
    assert found.high <= 0 or (data > found.high - 1.01 * width).mean() >= tail - 1e-9
    assert found.low >= 0 or (data < found.low + 1.01 * width).mean() >= tail - 1e-9


def test_percentile_is_that_of_onnxruntime() -> None:
    data = values("both signs")
    ours = calibrate("x", observed(data), "percentile", 99.87)
    collector = HistogramCollector("percentile", False, BINS, 128, 99.87, "same")
    collector.collect_value({"x": data})
    low, high, *_ = collector.compute_collection_result()["x"]
    assert (ours.low, ours.high) == (pytest.approx(float(low), abs=0.01), pytest.approx(float(high), abs=0.01))


def naive_squared_error(data: NDArray[np.float64], limit: float) -> float:
    scale = limit / LARGEST
    return float(((np.clip(np.rint(data / scale), -LARGEST, LARGEST) * scale - data) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_least_squares_lose_no_more_than_the_best_limit_found_on_the_values_themselves(kind: str) -> None:
    data = values(kind).astype(np.float64)
    found = calibrate("x", observed(values(kind)), "mse", 99.0)
    ours = naive_squared_error(data, max(-found.low, found.high))
    largest = np.abs(data).max()
    best = min(naive_squared_error(data, largest * share) for share in np.linspace(0.2, 1.0, 81))
    assert ours <= 1.03 * best
    if kind == "outliers":
        assert ours < 0.9 * naive_squared_error(data, largest)


def naive_divergence(counts: NDArray[np.float64], end: int) -> float:
    """The same definition, value by value in plain loops."""
    reference = [float(count) for count in counts[:end]]
    reference[-1] += float(sum(counts[end:]))
    spread = [0.0] * end
    for level in range(128):
        members = [i for i in range(end) if i * 128 // end == level and counts[i] > 0]
        for i in members:
            spread[i] = sum(float(counts[j]) for j in members) / len(members)
    total, whole = sum(reference), sum(spread)
    loss = 0.0
    for p, q in zip(reference, spread, strict=True):
        if p > 0:
            loss += p / total * np.log(p / total / max(q / whole, 1e-9))
    return loss


@pytest.mark.parametrize("end", [128, 500, 1111, 2048])
def test_divergence_is_that_of_the_definition(end: int) -> None:
    counts, _ = magnitudes(observed(values("outliers")))
    counts[0] = 0.0
    assert divergence(counts, end) == pytest.approx(naive_divergence(counts, end), rel=1e-9)


@pytest.mark.parametrize("kind", ["relu", "both signs", "outliers"])
def test_entropy_takes_the_limit_of_least_divergence(kind: str) -> None:
    statistics = observed(values(kind))
    found = calibrate("x", statistics, "entropy", 99.0)
    counts, width = magnitudes(statistics)
    counts[0] = 0.0
    last = int(np.nonzero(counts)[0][-1]) + 1
    losses = {end: divergence(counts, end) for end in range(128, last + 1, 4)}
    limit = min(losses, key=lambda end: losses[end]) * width
    assert max(-found.low, found.high) == pytest.approx(min(limit, np.abs(values(kind)).max()), rel=1e-6)


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_too_few_frames_are_an_error(method: str) -> None:
    statistics = observed(values("relu"), frames=LEAST_FRAMES[method] - 1)  # type: ignore[index]
    with pytest.raises(DataError, match="3 calibration frames for x"):
        calibrate("x", statistics, method, 99.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_a_tensor_of_zeros_is_an_error(method: str) -> None:
    with pytest.raises(DataError, match="is zero in all 8 calibration frames"):
        calibrate("x", observed(np.zeros(100, np.float32)), method, 99.9)  # type: ignore[arg-type]
