"""BEV pooling as gathers: which lifted pixels fall into which cell, from the calibration alone.

Every cell sums a list of (pixel, depth bin) products. The lists become tables of fixed width ("fan-in"), in a fixed
number of levels: the first gathers the products, the others sum rows of the level before. Rebuilt only when the
calibration changes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError
from altermoma.frames import Calibration
from altermoma.geometry import Geometry
from altermoma.ops import point_kernels as kernels
from altermoma.ops.images import image_warp


def pixel_rays(
    calibration: Calibration, geometry: Geometry, lidar_aug_44: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """LiDAR-frame rays of every feature pixel: directions [V, h, w, 3] per metre of depth, origins [V, 3], metres.

    `lidar_aug_44` is the augmentation that was applied to the points, so that both branches meet in one frame.
    """
    image = geometry.image
    height, width = image.feature_hw
    column_w = np.linspace(0, image.width - 1, width)
    row_h = np.linspace(0, image.height - 1, height)
    warp = image_warp(calibration.image_hw, image)
    pixels_hw3 = np.ones((height, width, 3))
    pixels_hw3[..., 0] = (column_w + warp.left) / warp.scale
    pixels_hw3[..., 1] = ((row_h + warp.top) / warp.scale)[:, None]
    lidar_from_camera_v44 = np.linalg.inv(calibration.camera_from_lidar_v44)
    if lidar_aug_44 is not None:
        lidar_from_camera_v44 = lidar_aug_44 @ lidar_from_camera_v44
    rays_v33 = lidar_from_camera_v44[:, :3, :3] @ np.linalg.inv(calibration.intrinsics_v33)
    return np.einsum("vij,hwj->vhwi", rays_v33, pixels_hw3), lidar_from_camera_v44[:, :3, 3]


def build_pooling_tables(
    calibration: Calibration, geometry: Geometry, lidar_aug_44: NDArray[np.float64] | None = None
) -> dict[str, NDArray[np.int32]]:
    """Tables by graph input name: `pool_depth`, `pool_pixel` [R1, F1] and `pool_sum_1`, ... [R, F].

    `lidar_aug_44` is the augmentation that was applied to the points.

    Raises:
        DataError: more lifted pixels in one cell than the product of `fan_in`.
    """
    directions_vhw3, origins_v3 = pixel_rays(calibration, geometry, lidar_aug_44)
    start, _, step = geometry.depth_bins
    pixels, bins = directions_vhw3.size // 3, geometry.depth_count
    cells_q, counts_xy = np.empty(pixels * bins, np.int32), np.zeros(geometry.pool_shape, np.int32)
    kernels.place_lifted(
        directions_vhw3.reshape(len(origins_v3), -1, 3),
        np.ascontiguousarray(origins_v3),
        start + step * np.arange(bins),
        np.array((*geometry.point_range[:2], geometry.pool_cell, *geometry.pool_z), np.float32),
        cells_q,
        counts_xy,
    )
    counts = counts_xy.reshape(-1)
    _check_longest(int(counts.max(initial=0)), geometry)
    first, *rest = geometry.fan_in
    # One row per started fan-in; a cell that nothing falls into has a row of its own in the last table only.
    rows_n = np.maximum(-(-counts // first), 0 if rest else 1)
    starts = (np.cumsum(rows_n, dtype=np.int32) - rows_n) * np.int32(first)
    total = int(rows_n.sum())
    depth, pixel = np.empty((total, first), np.int32), np.empty((total, first), np.int32)
    kernels.fill_first_tables(cells_q, starts, pixels * bins, bins, depth.reshape(-1), pixel.reshape(-1))
    tables = {"pool_depth": depth, "pool_pixel": pixel}
    for level, width in enumerate(rest, start=1):
        lengths_n, rows_n = rows_n, -(-rows_n // width)
        if level == len(rest):
            rows_n = np.maximum(rows_n, 1)
        table = np.empty((int(rows_n.sum()), width), np.int32)
        kernels.fill_sum_table(lengths_n, rows_n, total, table)
        tables[f"pool_sum_{level}"], total = table, len(table)
    return tables


def _check_longest(longest: int, geometry: Geometry) -> None:
    capacity = math.prod(geometry.fan_in)
    if longest > capacity:
        raise DataError(
            f"one BEV cell is seen by {longest} lifted pixels under this calibration",
            expected=f"at most {capacity}, the product of fan_in {geometry.fan_in}",
            remedy="check the calibration (intrinsics in pixels, poses in metres) or raise fan_in",
        )
