"""Points to pillars: the points of every occupied column as rows, and the tables that a PointNet over them needs.

Every pillar owns a run of rows: its points in the cloud's order, then, unless it is full, one row of zeros. That row
stands for all of its empty slots, which take part in the reference network's maximum: zeros pass through the layers and
come out as batch norm's shift. So the graph computes each point once and no empty slot twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.geometry import Geometry
from altermoma.ops import point_kernels as kernels
from altermoma.ops.padding import Padding
from altermoma.ops.pillar_kernels import fill_pillars
from altermoma.ops.voxels import column_masks

DECORATIONS = 5
"""Columns added to a point: x, y, z from the mean of its pillar's points, and x, y from the pillar's axis; metres."""


@dataclass(frozen=True, kw_only=True)
class Pillars:
    """Inputs of a pillar encoder. R rows, N pillars in ascending order of x * Y + y, T points per pillar at most.

    Attributes:
        points_rc: float32 [R, point features + DECORATIONS].
        point_pillar_r: int32 [R], the pillar of each row.
        pillar_table_nt: int32 [N, T], rows of each pillar's slots; empty slots point to its row of zeros.
        bev_table_m1: int32 [X * Y, 1], the pillar in each cell, N where there is none.
        dropped: occupied pillars beyond `max_voxels` that were left out.
    """

    points_rc: NDArray[np.float32]
    point_pillar_r: NDArray[np.int32]
    pillar_table_nt: NDArray[np.int32]
    bev_table_m1: NDArray[np.int32]
    dropped: int

    def inputs(self, padding: Padding | None = None) -> dict[str, NDArray[np.generic]]:
        """By graph input name; pillars that `padding` adds consist of the first row, and no cell names them."""
        if padding is None or not len(self.pillar_table_nt):
            rows, pillars = len(self.points_rc), len(self.pillar_table_nt)
        else:
            rows = padding.size("points", len(self.points_rc))
            pillars = padding.size("pillar_table", len(self.pillar_table_nt))
        none = len(self.pillar_table_nt)
        return {
            "points": _lengthened(self.points_rc, rows),
            "point_pillar": _lengthened(self.point_pillar_r, rows),
            "pillar_table": _lengthened(self.pillar_table_nt, pillars),
            "bev_table": np.where(self.bev_table_m1 == none, np.int32(pillars), self.bev_table_m1)
            if pillars > none
            else self.bev_table_m1,
        }


def _lengthened(array: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """With zeros behind the last row."""
    missing = rows - len(array)
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)]) if missing else array


class PillarBuilder:
    """Sorts points into pillars. Holds the grid's masks, so make one per thread."""

    def __init__(self, geometry: Geometry) -> None:
        x, y = geometry.sparse_shape[:2]
        self._shape = np.array((x, y, 1))
        self._low_size = np.array((geometry.point_range[:3], geometry.voxel_size), np.float32)
        self._low, self._size = np.array(geometry.point_range[:2]), np.array(geometry.voxel_size[:2])
        self._limit, self._slots = geometry.max_voxels, geometry.max_points_per_voxel
        self._masks, self._firsts = column_masks(x * y), np.empty(x * y, np.int32)

    def __call__(self, points_p5: NDArray[np.float32]) -> Pillars:
        """Sorts points (LiDAR frame, metres) into pillars and decorates them, as mit-han-lab's PillarFeatureNet does.

        A pillar takes its first `max_points_per_voxel` points. Beyond `max_voxels` pillars, those seen last in the
        cloud are dropped and counted.
        """
        points = np.ascontiguousarray(points_p5)
        pillars_p, cells_n, dropped = self._occupied(points)
        counts = np.bincount(pillars_p[pillars_p >= 0], minlength=len(cells_n))
        rows_n = np.minimum(counts + 1, self._slots)
        firsts_n = np.cumsum(rows_n) - rows_n
        rows = np.zeros((int(rows_n.sum()), points.shape[1] + DECORATIONS), np.float32)
        axes_n2 = (np.stack(np.divmod(cells_n, self._shape[1]), axis=1) + 0.5) * self._size + self._low
        fill_pillars(points, pillars_p, firsts_n, self._slots, axes_n2, rows)

        first, last = firsts_n.astype(np.int32)[:, None], (firsts_n + rows_n - 1).astype(np.int32)[:, None]
        table = np.minimum(first + np.arange(self._slots, dtype=np.int32), last)
        bev_table = np.full((len(self._firsts), 1), len(cells_n), np.int32)
        bev_table[cells_n, 0] = np.arange(len(cells_n), dtype=np.int32)
        return Pillars(
            points_rc=rows,
            point_pillar_r=np.repeat(np.arange(len(cells_n), dtype=np.int32), rows_n),
            pillar_table_nt=table,
            bev_table_m1=bev_table,
            dropped=dropped,
        )

    def _occupied(self, points_p5: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """The pillar of each point (-1 for none), the cell x * Y + y of each pillar, and how many were dropped."""
        cells_p = np.empty(len(points_p5), np.int64)
        marked, refused = kernels.mark_voxels(points_p5, self._low_size, self._shape, self._limit, self._masks, cells_p)
        dropped = len(np.unique(cells_p[cells_p < -1])) if refused else 0
        cells_n = np.empty(marked, np.int64)
        kernels.list_voxels(self._masks, 1, self._firsts, cells_n)
        kernels.keys_to_rows(cells_p, self._masks, self._firsts)
        kernels.wipe_voxels(cells_n, 1, self._masks, len(self._firsts))
        return cells_p, cells_n, dropped
