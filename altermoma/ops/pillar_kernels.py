"""Compiled loop that lays out the points of pillars."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.ops.compiled import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@compiled("void(float32[:, ::1], int64[::1], int64[::1], int64, float64[:, ::1], float32[:, ::1])")
def fill_pillars(points: F32, pillars_p: I64, firsts_n: I64, slots: int, axes_n2: F64, rows_rc: F32) -> None:
    """Writes the first `slots` points of each pillar from row `firsts_n` on, with their offsets.

    `pillars_p` is the pillar of each point (-1 for none), `axes_n2` x, y of each pillar's centre. `rows_rc` is
    [R, C + 5] and zero before: the point, its x, y, z from the mean of its pillar's points, its x, y from the axis.
    """
    channels = points.shape[1]
    used = np.zeros(len(firsts_n), np.int64)
    for p in range(len(points)):
        pillar = pillars_p[p]
        if pillar >= 0 and used[pillar] < slots:
            row = firsts_n[pillar] + used[pillar]
            for c in range(channels):
                rows_rc[row, c] = points[p, c]
            used[pillar] += 1
    for pillar in range(len(firsts_n)):
        first, last = firsts_n[pillar], firsts_n[pillar] + used[pillar]
        for axis in range(3):
            total = 0.0
            for row in range(first, last):
                total += rows_rc[row, axis]
            for row in range(first, last):
                rows_rc[row, channels + axis] = np.float32(rows_rc[row, axis] - total / used[pillar])
        for axis in range(2):
            for row in range(first, last):
                rows_rc[row, channels + 3 + axis] = np.float32(rows_rc[row, axis] - axes_n2[pillar, axis])
