"""Points to voxels: which cells are occupied, and the mean point of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.geometry import Geometry
from altermoma.ops import point_kernels as kernels


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """Occupied cells in ascending order of (x * Y + y) * Z + z.

    Attributes:
        keys_n: int64 linear cell numbers, strictly ascending.
        features_nc: float32 mean of the first `max_points_per_voxel` points of each cell.
        dropped: occupied cells beyond `max_voxels` that were left out.
    """

    keys_n: NDArray[np.int64]
    features_nc: NDArray[np.float32]
    dropped: int


def column_masks(columns: int) -> NDArray[np.uint64]:
    """An empty grid for `point_kernels.mark_voxels`: a mask per column, then a mask per 64 columns."""
    return np.zeros(columns + -(-columns // 64), np.uint64)


class Voxeliser:
    """Mean-pools points into voxels. Holds the grid's masks, so make one per thread."""

    def __init__(self, geometry: Geometry) -> None:
        x, y, z = geometry.sparse_shape
        # The cell that SECOND's encoders add along z never holds points.
        self._shape, self._grid_height = np.array((x, y, z - 1)), z
        self._low_size = np.array((geometry.point_range[:3], geometry.voxel_size), np.float32)
        self._max_voxels, self._max_points = geometry.max_voxels, geometry.max_points_per_voxel
        self._masks, self._firsts = column_masks(x * y), np.empty(x * y, np.int32)

    def __call__(self, points_p5: NDArray[np.float32]) -> Voxels:
        """Mean-pools points (LiDAR frame, metres) into voxels, as BEVFusion's HardSimpleVFE does.

        Where more cells are occupied than `max_voxels`, those seen last in the cloud are dropped and counted, as
        mmdet3d's hard voxelisation does; sorting afterwards keeps neighbouring rows close in memory.
        """
        points = np.ascontiguousarray(points_p5)
        cells_p = np.empty(len(points), np.int64)
        marked, refused = kernels.mark_voxels(
            points, self._low_size, self._shape, self._max_voxels, self._masks, cells_p
        )
        dropped = len(np.unique(cells_p[cells_p < -1])) if refused else 0
        keys_n, means_nc = np.empty(marked, np.int64), np.zeros((marked, points.shape[1]), np.float32)
        kernels.list_voxels(self._masks, self._grid_height, self._firsts, keys_n)
        kernels.keys_to_rows(cells_p, self._masks, self._firsts)
        kernels.mean_points(points, cells_p, self._max_points, means_nc)
        kernels.wipe_voxels(keys_n, self._grid_height, self._masks, len(self._firsts))
        return Voxels(keys_n=keys_n, features_nc=means_nc, dropped=dropped)
