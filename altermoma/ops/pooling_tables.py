"""BEV pooling as gathers: which lifted pixels fall into which cell, from the calibration alone.

Every cell sums a list of (pixel, depth bin) products. The lists become tables of fixed width ("fan-in"), in a fixed
number of levels: the first gathers the products, the others sum rows of the level before. Rebuilt only when the
calibration changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError
from altermoma.frames import Calibration
from altermoma.geometry import Geometry
from altermoma.ops.images import image_warp


def frustum_points(calibration: Calibration, geometry: Geometry) -> NDArray[np.float32]:
    """LiDAR-frame points of every (camera, feature row, feature column, depth bin): float32 [V, h, w, D, 3], metres."""
    image = geometry.image
    height, width = image.feature_hw
    start, _, step = geometry.depth_bins
    depth_d = start + step * np.arange(geometry.depth_count)
    column_w = np.linspace(0, image.width - 1, width)
    row_h = np.linspace(0, image.height - 1, height)
    warp = image_warp(calibration.image_hw, image)
    pixels_hw3 = np.ones((height, width, 3))
    pixels_hw3[..., 0] = (column_w + warp.left) / warp.scale
    pixels_hw3[..., 1] = ((row_h + warp.top) / warp.scale)[:, None]
    lidar_from_camera_v44 = np.linalg.inv(calibration.camera_from_lidar_v44)
    rays_v33 = lidar_from_camera_v44[:, :3, :3] @ np.linalg.inv(calibration.intrinsics_v33)
    directions = np.einsum("vij,hwj->vhwi", rays_v33, pixels_hw3)
    points: NDArray[np.float64] = (
        directions[..., None, :] * depth_d[:, None] + lidar_from_camera_v44[:, None, None, None, :3, 3]
    )
    return points.astype(np.float32)


def build_pooling_tables(
    calibration: Calibration, geometry: Geometry, lidar_aug_44: NDArray[np.float64] | None = None
) -> dict[str, NDArray[np.int32]]:
    """Tables by graph input name: `pool_depth`, `pool_pixel` [R1, F1] and `pool_sum_1`, ... [R, F].

    `lidar_aug_44` is the augmentation that was applied to the points, so that both branches meet in one frame.
    """
    points = frustum_points(calibration, geometry)
    if lidar_aug_44 is not None:
        points = points @ lidar_aug_44[:3, :3].T.astype(np.float32) + lidar_aug_44[:3, 3].astype(np.float32)
    size_x, size_y = geometry.pool_shape
    low = np.asarray(geometry.point_range[:2], np.float32)
    # Truncation instead of floor puts points up to one cell below the range into cell 0, as BEVFusion does.
    cells = ((points[..., :2] - low) / np.float32(geometry.pool_cell)).astype(np.int32)
    inside = (cells >= 0).all(-1) & (cells[..., 0] < size_x) & (cells[..., 1] < size_y)
    inside &= (points[..., 2] >= geometry.pool_z[0]) & (points[..., 2] < geometry.pool_z[1])
    source = np.flatnonzero(inside.ravel())
    cell = (cells[..., 0] * size_y + cells[..., 1]).ravel()[source]
    order = np.argsort(cell, kind="stable")
    lists = _Lists(source[order].astype(np.int32), np.bincount(cell, minlength=size_x * size_y))
    return _tables(lists, inside.size, geometry)


class _Lists:
    """Entries of consecutive lists, and the length of each list."""

    def __init__(self, entries: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        self.entries, self.lengths = entries, lengths

    def chunked(self, width: int, empty: int, *, keep_empty: bool) -> tuple[NDArray[np.int32], _Lists]:
        """Rows of `width` entries padded with `empty`, and the lists of those rows."""
        rows_per_list = -(-self.lengths // width)
        if keep_empty:
            rows_per_list = np.maximum(rows_per_list, 1)
        first_row = np.cumsum(rows_per_list) - rows_per_list
        first_entry = np.cumsum(self.lengths) - self.lengths
        position = np.arange(len(self.entries)) - np.repeat(first_entry, self.lengths)
        table = np.full((int(rows_per_list.sum()), width), empty, np.int32)
        table.reshape(-1)[np.repeat(first_row * width, self.lengths) + position] = self.entries
        return table, _Lists(np.arange(len(table), dtype=np.int32), rows_per_list)


def _tables(lists: _Lists, products: int, geometry: Geometry) -> dict[str, NDArray[np.int32]]:
    capacity = int(np.prod(geometry.fan_in))
    longest = int(lists.lengths.max(initial=0))
    if longest > capacity:
        raise DataError(
            f"one BEV cell is seen by {longest} lifted pixels under this calibration",
            expected=f"at most {capacity}, the product of fan_in {geometry.fan_in}",
            remedy="check the calibration (intrinsics in pixels, poses in metres) or raise fan_in",
        )
    first, *rest = geometry.fan_in
    pool_depth, lists = lists.chunked(first, products, keep_empty=not rest)
    # The zero row of the depth weights, products, divides to the zero row of the pixels.
    tables = {"pool_depth": pool_depth, "pool_pixel": pool_depth // np.int32(geometry.depth_count)}
    rows = len(pool_depth)
    for level, width in enumerate(rest, start=1):
        last = level == len(rest)
        table, lists = lists.chunked(width, rows, keep_empty=last)
        tables[f"pool_sum_{level}"] = table
        rows = len(table)
    return tables
