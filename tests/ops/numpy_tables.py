"""The host's irregular work in plain numpy: what the compiled loops are held to, entry by entry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.frames import Calibration
from altermoma.geometry import Geometry
from altermoma.ops.images import image_warp
from altermoma.ops.sparse_tables import SUBMANIFOLD, TO_BEV, Keys, Table, Triple, Window, level_shapes, level_windows
from altermoma.ops.voxels import Voxels

Axis = NDArray[np.int32]
HEIGHTS = {"mid": [1], "low": [0, 1], "high": [1, 2], "all": [0, 1, 2]}


class RowMap:
    """A dense cell -> row map with a border of one empty cell."""

    def __init__(self, shape: Triple) -> None:
        self.shape = shape
        self._step_x, self._step_y = (shape[1] + 2) * (shape[2] + 2), shape[2] + 2
        self._rows = np.full((shape[0] + 2) * self._step_x, -1, np.int32)

    def _cell(self, *xyz: Axis) -> NDArray[np.intp]:
        # numpy gathers with its own index type about seven times faster than with int32.
        x, y, z = (axis.astype(np.intp) + 1 for axis in xyz)
        cell: NDArray[np.intp] = x * self._step_x + y * self._step_y + z
        return cell

    def table(self, occupied: Coordinates, outputs: Coordinates, window: Window) -> Table:
        """For each output and window offset the row of the `occupied` voxel there, or len(occupied): [N_out, K]."""
        cells = self._cell(*occupied.xyz)
        starts = (
            c * np.int32(s) - np.int32(p) for c, s, p in zip(outputs.xyz, window.stride, window.padding, strict=True)
        )
        kx, ky, kz = (np.arange(k) for k in window.kernel)
        offsets = (kx[:, None, None] * self._step_x + ky[:, None] * self._step_y + kz).ravel()
        self._rows[cells] = np.arange(len(cells), dtype=np.int32)
        rows: Table = self._rows.take(self._cell(*starts)[:, None] + offsets)
        self._rows[cells] = -1
        np.copyto(rows, np.int32(len(cells)), where=rows < 0)
        return rows


@dataclass(frozen=True)
class Coordinates:
    """Axis of a grid, in ascending order of (x * Y + y) * Z + z."""

    xyz: tuple[Axis, Axis, Axis]

    @classmethod
    def of_keys(cls, keys: Keys, shape: Triple) -> Coordinates:
        xy, z = np.divmod(keys.astype(np.int32), np.int32(shape[2]))
        x, y = np.divmod(xy, np.int32(shape[1]))
        return cls((x, y, z))

    def __len__(self) -> int:
        return len(self.xyz[0])


def reached(occupied: Coordinates, window: Window, shape_out: Triple) -> Coordinates:
    """Output cells whose window covers at least one occupied cell."""
    first, last = [], []
    for axis, cells in enumerate(occupied.xyz):
        kernel, stride, padding = window.kernel[axis], window.stride[axis], window.padding[axis]
        first.append(np.maximum(-((kernel - 1 - padding - cells) // stride), 0))
        last.append(np.minimum((cells + padding) // stride, shape_out[axis] - 1))
    covered = np.logical_and.reduce([low <= high for low, high in zip(first, last, strict=True)])
    candidates = []
    for low, high, kernel, stride in zip(first, last, window.kernel, window.stride, strict=True):
        reach = np.arange(-(-kernel // stride), dtype=np.int32)
        # Axis covered by fewer outputs than `reach` repeat the last one, which marks it twice.
        candidates.append(np.minimum(low[covered, None] + reach, high[covered, None]))
    x, y, z = candidates
    keys = (x[:, :, None, None] * shape_out[1] + y[:, None, :, None]) * shape_out[2] + z[:, None, None, :]
    marks = np.zeros(int(np.prod(shape_out)), bool)
    marks[keys.ravel()] = True
    return Coordinates.of_keys(np.flatnonzero(marks), shape_out)


class NumpySparseTables:
    """What SparseTableBuilder builds."""

    def __init__(self, geometry: Geometry) -> None:
        self._levels = geometry.lidar_levels
        self._shapes = level_shapes(geometry)
        self._maps = [RowMap(shape) for shape in self._shapes[:-1]]

    def whole(self, keys: Keys) -> dict[str, Table]:
        """Tables of all offsets, rows in ascending order of their cells."""
        tables: dict[str, Table] = {}
        cells = Coordinates.of_keys(keys, self._shapes[0])
        for level, row_map in enumerate(self._maps):
            last = level == self._levels
            tables[f"subm_table_{level}"] = row_map.table(cells, cells, SUBMANIFOLD)
            window = TO_BEV if last else level_windows(self._levels)[level]
            outputs = reached(cells, window, self._shapes[level + 1])
            tables["out_table" if last else f"down_table_{level}"] = row_map.table(cells, outputs, window)
            cells = outputs
        tables["bev_table"] = self._bev_table(cells)
        return tables

    def build(self, keys: Keys) -> tuple[Table, dict[str, Table]]:
        """Row of every voxel and the number of rows, and the tables by segment."""
        whole, tables = self.whole(keys), {}
        orders, kinds, ranks_of = [], [], []
        for level in range(self._levels + 1):
            table = whole[f"subm_table_{level}"]
            occupied = (table < len(table)).reshape(-1, 9, 3).any(axis=1)
            kinds.append(occupied[:, 0] + 2 * occupied[:, 2])
            orders.append(np.argsort(kinds[-1], kind="stable"))
            # A segment without voxels has one row of its own.
            spare = [int(len(table) > 0 and not (kinds[-1] == kind).any()) for kind in range(4)]
            shift = np.cumsum([0, *spare])
            ranks = np.argsort(orders[-1]) + shift[kinds[-1]]
            ranks_of.append(np.append(ranks, len(table) + shift[4]).astype(np.int32))
        for level, (order, ranks) in enumerate(zip(orders, ranks_of, strict=True)):
            for kind, (name, slabs) in enumerate(HEIGHTS.items()):
                near = whole[f"subm_table_{level}"].reshape(-1, 9, 3)[order][kinds[level][order] == kind]
                tables[f"subm_table_{level}_{name}"] = ranks[near[:, :, slabs].reshape(len(near), 9 * len(slabs))]
                if level < self._levels:
                    after = orders[level + 1]
                    under = whole[f"down_table_{level}"][after][kinds[level + 1][after] == kind]
                    tables[f"down_table_{level}_{name}"] = ranks[under]
        for name, table in tables.items():
            level = int(name.split("_")[2])
            if len(table) == 0 and len(orders[level]):
                tables[name] = np.full((1, table.shape[1]), ranks_of[level][-1])
        tables["out_table"], tables["bev_table"] = ranks[whole["out_table"]], whole["bev_table"]
        return ranks_of[0], tables

    def _bev_table(self, cells: Coordinates) -> Table:
        x, y, z = self._shapes[-1]
        table = np.full((x, y, z), len(cells), np.int32)
        table[cells.xyz] = np.arange(len(cells), dtype=np.int32)
        return table.reshape(x * y, z)


def numpy_voxels(points_p5: NDArray[np.float32], geometry: Geometry) -> Voxels:
    """What Voxeliser gives."""
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
