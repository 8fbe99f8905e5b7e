"""Mean, spread and paired differences over seeds; a bootstrap interval where there are seeds enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10000
LEAST = 3
"""Pairs below which an interval would only look like one."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation; None for a single value."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of paired differences and the bootstrap's 95 % interval of it; None for fewer than `LEAST` pairs."""

    mean: float
    interval: tuple[float, float] | None
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    found = np.asarray(values, dtype=np.float64)
    deviation = float(found.std(ddof=1)) if len(found) > 1 else None
    return Spread(mean=float(found.mean()), deviation=deviation, count=len(found))


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """first - second, pair by pair; percentile bootstrap over the pairs.

    With n pairs the bootstrap knows only n values: of three it says hardly more than their range.
    """
    apart = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    interval = None
    if len(apart) >= LEAST:
        drawn = np.random.default_rng(seed).integers(0, len(apart), (RESAMPLES, len(apart)))
        low, high = np.percentile(apart[drawn].mean(axis=1), [2.5, 97.5])
        interval = float(low), float(high)
    return Difference(mean=float(apart.mean()), interval=interval, count=len(apart))
