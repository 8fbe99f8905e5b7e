"""From statistics of a tensor to the range that its numbers are rounded within.

Each takes `TensorStatistics` and gives a `Range` that holds zero. All ranges are chosen for 127 steps to either side,
as TensorRT has them; ONNX Runtime, which has 255 for both, gets the same.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altermoma.calib.scales import LARGEST, Range
from altermoma.calib.statistics import BINS, TensorStatistics
from altermoma.errors import DataError

Method = Literal["minmax", "percentile", "entropy", "mse"]

LEAST_FRAMES: dict[Method, int] = {"minmax": 1, "percentile": 4, "entropy": 4, "mse": 4}
"""Fewer frames than this say nothing about the shape of a distribution."""

Floats = NDArray[np.float64]

_MSE_STEPS = 120
_LEVELS = LARGEST + 1


def calibrate(name: str, found: TensorStatistics, method: Method, percentile: float) -> Range:
    """The range of one tensor.

    Args:
        name: of the tensor, for errors.
        found: its statistics.
        method: `minmax` takes the extremes; `percentile` leaves out the tails; `entropy` minimises the
            Kullback-Leibler divergence from the distribution to its rounded self; `mse` the squared rounding error.
        percentile: share of the values inside, in percent, of the method of that name.

    Raises:
        DataError: too few frames for the method, or a tensor of zeros alone.
    """
    if found.frames < LEAST_FRAMES[method]:
        raise DataError(
            f"{found.frames} calibration frames for {name}",
            expected=f"at least {LEAST_FRAMES[method]} for the method {method!r}",
            remedy='name more frames in the manifest, or calibrate with method = "minmax"',
        )
    if found.reach == 0.0 or found.low == found.high == 0.0:
        raise DataError(
            f"tensor {name} is zero in all {found.frames} calibration frames",
            expected="activations other than zero: a range cannot be told from none",
            remedy="add frames in which this part of the model has something to see, or name its block in `keep` of "
            "the calibration recipe",
        )
    if method == "minmax":
        return Range(low=found.low, high=found.high)
    if method == "percentile":
        return _percentile(found, percentile)
    limit = _entropy(found) if method == "entropy" else _least_squares(found)
    return Range(low=max(found.low, -limit), high=min(found.high, limit))


def _percentile(found: TensorStatistics, percentile: float) -> Range:
    """Half of what is left out lies below the range, half above; an end is an edge of a bin."""
    tail = (1.0 - percentile / 100.0) / 2.0
    below = np.cumsum(found.counts_b) / found.counts_b.sum()
    width = 2.0 * found.reach / BINS
    low = float(np.searchsorted(below, tail, side="right")) * width - found.reach
    high = float(np.searchsorted(below, 1.0 - tail, side="left") + 1) * width - found.reach
    return _holding_zero(max(low, found.low), min(high, found.high), found)


def _holding_zero(low: float, high: float, found: TensorStatistics) -> Range:
    """Where the tails were all there was, the extremes."""
    low, high = min(low, 0.0), max(high, 0.0)
    return Range(low=low, high=high) if low < high else Range(low=found.low, high=found.high)


def magnitudes(found: TensorStatistics) -> tuple[Floats, float]:
    """Values per bin of |x|, [BINS / 2], and the width of a bin."""
    half = BINS // 2
    folded: Floats = (found.counts_b[half:] + found.counts_b[:half][::-1]).astype(np.float64)
    return folded, found.reach / half


def _entropy(found: TensorStatistics) -> float:
    """The limit that loses least information: min over t of KL(P_t || Q_t).

    P_t: the histogram of |x| up to bin t, what lies beyond counted in the last bin. Q_t: the same bins, without what
    lies beyond, in 128 levels, each spread evenly over those of its bins that hold anything. (Migacz, 8-bit inference
    with TensorRT, 2017.) The zeros, which round to themselves, are left out: after a ReLU they would drown the rest.
    """
    counts, width = magnitudes(found)
    counts[0] = 0.0
    occupied = np.nonzero(counts)[0]
    if not occupied.size:
        return width
    last = int(occupied[-1]) + 1
    if last <= _LEVELS:
        return last * width
    ends = range(_LEVELS, last + 1, 4)
    losses = [divergence(counts, end) for end in ends]
    return ends[int(np.argmin(losses))] * width


def divergence(counts: Floats, end: int) -> float:
    """KL(P || Q) of the first `end` bins, as `_entropy` defines them."""
    kept = counts[:end]
    reference = kept.copy()
    reference[-1] += counts[end:].sum()
    level = np.arange(end) * _LEVELS // end
    filled = kept > 0
    mass = np.bincount(level, weights=kept, minlength=_LEVELS)
    members = np.bincount(level, weights=filled, minlength=_LEVELS)
    spread = np.where(filled, mass[level] / np.maximum(members[level], 1.0), 0.0)
    if not spread.sum():
        return float("inf")
    p, q = reference / reference.sum(), spread / spread.sum()
    known = p > 0
    # What is clipped into a bin that Q leaves empty costs as much as a probability of 1e-9 would.
    return float((p[known] * np.log(p[known] / np.maximum(q[known], 1e-9))).sum())


def _least_squares(found: TensorStatistics) -> float:
    """The limit of least squared error of rounding and clipping, on a grid of shares of the largest magnitude."""
    counts, width = magnitudes(found)
    centres = (np.arange(len(counts)) + 0.5) * width
    # Bin 0 is mostly exact zeros, which cost nothing at any scale.
    centres[0] = 0.0
    largest = max(-found.low, found.high)
    limits = largest * np.linspace(0.2, 1.0, _MSE_STEPS)
    scales = limits / LARGEST
    errors = [
        float((counts * (np.minimum(np.rint(centres / scale), LARGEST) * scale - centres) ** 2).sum())
        for scale in scales
    ]
    return float(limits[int(np.argmin(errors))])
