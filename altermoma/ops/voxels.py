"""Points to voxels: which cells are occupied, and the mean point of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.geometry import Geometry


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


def voxelise(points_p5: NDArray[np.float32], geometry: Geometry) -> Voxels:
    """Mean-pools points (LiDAR frame, metres) into voxels, as BEVFusion's HardSimpleVFE does.

    Where more cells are occupied than `max_voxels`, those seen last in the cloud are dropped and counted, as
    mmdet3d's hard voxelisation does; sorting afterwards keeps neighbouring rows close in memory.
    """
    low = np.asarray(geometry.point_range[:3], np.float32)
    size = np.asarray(geometry.voxel_size, np.float32)
    x, y, z = geometry.sparse_shape
    with np.errstate(over="ignore"):  # drivers mark lost returns with the largest float
        floors_p3 = np.floor((points_p5[:, :3] - low) / size)
    # Compared before the cast, which far coordinates would overflow.
    inside_p = ((floors_p3 >= 0) & (floors_p3 < np.asarray((x, y, z - 1), np.float32))).all(axis=1)
    cells_p3, points = floors_p3[inside_p].astype(np.int32), points_p5[inside_p]
    keys_p = (cells_p3[:, 0].astype(np.int64) * y + cells_p3[:, 1]) * z + cells_p3[:, 2]
    sorted_keys, order = _sorted(keys_p)
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=-1))
    counts = np.diff(starts, append=len(order))
    rank_p = np.arange(len(order)) - np.repeat(starts, counts)
    kept = rank_p < geometry.max_points_per_voxel
    ordered = points[order] if kept.all() else points[order] * kept[:, None]
    sums = np.add.reduceat(ordered, starts, axis=0) if len(starts) else points[:0]
    means = sums / np.minimum(counts, geometry.max_points_per_voxel)[:, None]
    keys = sorted_keys[starts]
    dropped = max(0, len(keys) - geometry.max_voxels)
    if dropped:
        first_seen = order[starts]
        keep = np.sort(np.argsort(first_seen, kind="stable")[: geometry.max_voxels])
        keys, means = keys[keep], means[keep]
    return Voxels(keys_n=keys, features_nc=means.astype(np.float32), dropped=dropped)


def _sorted(keys_p: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ascending keys and the stable order that sorts them.

    Key and position share one integer, because numpy sorts plain integers with vector instructions and argsorts them
    without.
    """
    bits = max(len(keys_p) - 1, 1).bit_length()
    joined = np.sort((keys_p << bits) | np.arange(len(keys_p)))
    return joined >> bits, joined & ((1 << bits) - 1)
