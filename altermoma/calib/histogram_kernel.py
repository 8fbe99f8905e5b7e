"""The compiled loop over activations: one pass, no copies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.ops.compiled import compiled


@compiled("boolean(float32[::1], float64, int64[::1])")
def count_into(values_n: NDArray[np.float32], reach: float, counts_b: NDArray[np.int64]) -> bool:
    """Adds values to equal bins over [-reach, reach]; False where one of them is not finite or beyond."""
    bins = len(counts_b)
    per_unit = bins / (2.0 * reach)
    for value in values_n:
        place = (np.float64(value) + reach) * per_unit
        if not 0.0 <= place <= bins:
            return False
        counts_b[min(int(place), bins - 1)] += 1
    return True


@compiled("UniTuple(float32, 2)(float32[::1])")
def extremes(values_n: NDArray[np.float32]) -> tuple[np.float32, np.float32]:
    """Smallest and largest value; NaN, if there is one, is both."""
    low = high = values_n[0]
    for value in values_n:
        if np.isnan(value):
            return value, value
        low, high = min(low, value), max(high, value)
    return low, high
