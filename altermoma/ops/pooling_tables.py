"""BEV pooling as gathers: which lifted pixels fall into which cell, from the calibration alone.

The pixels of one image column lie, at one depth, above each other: nearly all of them fall into the same BEV cell. So a
*run* is what one column sends into one cell at one depth bin, and a column's runs are one small matrix product, depth
weights [runs, h] times features [h, C]. A cell then sums the few runs that reach it, instead of every lifted pixel.
Exact for any calibration: a tilted camera only has more runs. Rebuilt only when the calibration changes.
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
from altermoma.ops.padding import Padding, Unpadded


def pixel_rays(
    calibration: Calibration, geometry: Geometry, lidar_aug_44: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """LiDAR-frame rays of every feature pixel: directions [V, h, w, 3] per metre of depth, origins [V, 3], metres.

    `lidar_aug_44` is the augmentation that was applied to the points, so that both branches meet in one frame.

    Raises:
        DataError: a calibration that cannot be inverted.
    """
    image = geometry.image
    height, width = image.feature_hw
    column_w = np.linspace(0, image.width - 1, width)
    row_h = np.linspace(0, image.height - 1, height)
    warp = image_warp(calibration.image_hw, image)
    pixels_hw3 = np.ones((height, width, 3))
    pixels_hw3[..., 0] = (column_w + warp.left) / warp.scale
    pixels_hw3[..., 1] = ((row_h + warp.top) / warp.scale)[:, None]
    try:
        lidar_from_camera_v44 = np.linalg.inv(calibration.camera_from_lidar_v44.astype(np.float64))
        camera_from_pixel_v33 = np.linalg.inv(calibration.intrinsics_v33.astype(np.float64))
    except np.linalg.LinAlgError as error:
        raise DataError(
            "a matrix of the calibration has no inverse",
            expected="intrinsics [fx 0 cx; 0 fy cy; 0 0 1] and rigid poses",
            remedy="look for a camera whose calibration is all zeros or was loaded in part",
        ) from error
    if lidar_aug_44 is not None:
        lidar_from_camera_v44 = lidar_aug_44 @ lidar_from_camera_v44
    rays_v33 = lidar_from_camera_v44[:, :3, :3] @ camera_from_pixel_v33
    return np.einsum("vij,hwj->vhwi", rays_v33, pixels_hw3), lidar_from_camera_v44[:, :3, 3]


def build_pooling_tables(
    calibration: Calibration,
    geometry: Geometry,
    lidar_aug_44: NDArray[np.float64] | None = None,
    padding: Padding | None = None,
) -> dict[str, NDArray[np.int32]]:
    """Tables by graph input name.

    `pool_depth` [V * w, R, h]: for each image column, run and feature row the entry of the depth weights, flat
    [V, h, w, D], or V * h * w * D for none. `pool_sum_1`, ... [S, F]: rows to sum, counted over the runs (column * R +
    run) and then over the sums of all earlier tables; the number behind the last row is none. The last table has one
    row per cell.

    `lidar_aug_44` is the augmentation that was applied to the points; `padding` may make the tables larger than this
    calibration needs.

    Raises:
        DataError: more runs in one cell than the product of `fan_in`, or a calibration that cannot be inverted.
    """
    directions_vhw3, origins_v3 = pixel_rays(calibration, geometry, lidar_aug_44)
    views, height, width, _ = directions_vhw3.shape
    start, _, step = geometry.depth_bins
    cells_vhwd = np.empty((views, height, width, geometry.depth_count), np.int32)
    kernels.place_lifted(
        directions_vhw3.reshape(views, -1, 3),
        np.ascontiguousarray(origins_v3),
        start + step * np.arange(geometry.depth_count),
        pool_bounds(geometry),
        cells_vhwd.reshape(-1),
    )
    counts = np.zeros(math.prod(geometry.pool_shape), np.int32)
    padding = padding or Unpadded()
    runs = padding.size("pool_depth", max(kernels.count_runs(cells_vhwd, counts), 1))
    pool_depth = np.empty((views * width, runs, height), np.int32)
    rows_of_cells = np.empty(int(counts.sum()), np.int32)
    kernels.fill_runs(cells_vhwd, np.cumsum(counts, dtype=np.int32) - counts, pool_depth, rows_of_cells)
    return {"pool_depth": pool_depth, **_sum_tables(rows_of_cells, counts, views * width * runs, geometry, padding)}


def pool_bounds(geometry: Geometry) -> NDArray[np.float32]:
    """Lowest x and y, the cell's size, lowest and highest z, metres, and the cells X and Y."""
    return np.array((*geometry.point_range[:2], geometry.pool_cell, *geometry.pool_z, *geometry.pool_shape), np.float32)


def too_many_runs(longest: int, geometry: Geometry) -> DataError:
    """What to say of a calibration that sends more runs into a cell than the tables hold."""
    return DataError(
        f"one BEV cell is reached by {longest} runs of lifted pixels under this calibration",
        expected=f"at most {math.prod(geometry.fan_in)}, the product of fan_in {geometry.fan_in}",
        remedy="check the calibration (intrinsics in pixels, poses in metres) or raise fan_in",
    )


def _sum_tables(
    entries: NDArray[np.int32], lengths: NDArray[np.int32], rows: int, geometry: Geometry, padding: Padding
) -> dict[str, NDArray[np.int32]]:
    """Sums of the lists of all cells; every table but the last sums pieces of those that are too long for the last."""
    capacity, longest = math.prod(geometry.fan_in), int(lengths.max(initial=0))
    if longest > capacity:
        raise too_many_runs(longest, geometry)
    *middle, last = geometry.fan_in
    tables = {}
    for level, width in enumerate(middle, start=1):
        chunks = np.where(lengths > last, -(-lengths // width), 0).astype(np.int32)
        # An engine's profile has no empty tables.
        room = padding.size(f"pool_sum_{level}", max(int(chunks.sum()), 1))
        table = np.full((room, width), rows, np.int32)
        lengths, before = np.where(chunks > 0, chunks, lengths), lengths
        shortened = np.empty(int(lengths.sum()), np.int32)
        kernels.fill_sums(entries, before, chunks, rows, table, shortened)
        tables[f"pool_sum_{level}"], entries = table, shortened
        rows += len(table)
    table = np.full((len(lengths), last), rows, np.int32)
    kernels.fill_cells(entries, lengths, table)
    return {**tables, f"pool_sum_{len(middle) + 1}": table}
