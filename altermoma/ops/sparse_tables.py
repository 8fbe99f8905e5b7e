"""Index tables that turn a sparse convolution into one gather and one matrix product.

`table[N_out, K]` holds for each output voxel and kernel offset the row of the input voxel, or N_in where there is
none. Offsets are ordered (x, y, z) with z fastest, as spconv 2 stores its weights (out, kx, ky, kz, in).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.geometry import Geometry

Triple = tuple[int, int, int]
Keys = NDArray[np.int64]
Table = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A convolution window per axis (x, y, z)."""

    kernel: Triple
    stride: Triple
    padding: Triple

    def out_shape(self, shape: Triple) -> Triple:
        x, y, z = (
            (n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, self.kernel, self.stride, self.padding, strict=True)
        )
        return x, y, z


SUBMANIFOLD = Window(kernel=(3, 3, 3), stride=(1, 1, 1), padding=(1, 1, 1))
DOWN = Window(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1))
DOWN_FLAT = Window(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 0))
TO_BEV = Window(kernel=(1, 1, 3), stride=(1, 1, 2), padding=(0, 0, 0))


def level_windows(levels: int) -> tuple[Window, ...]:
    """The strided windows between levels; the last does not pad along z, as in BEVFusion's encoder."""
    return (*(DOWN for _ in range(levels - 1)), DOWN_FLAT)


def level_shapes(geometry: Geometry) -> tuple[Triple, ...]:
    """Grid of every level, and as the last entry that of the encoder's output."""
    shapes = [geometry.sparse_shape]
    for window in (*level_windows(geometry.lidar_levels), TO_BEV):
        shapes.append(window.out_shape(shapes[-1]))
    return tuple(shapes)


class RowMap:
    """A dense cell -> row map that is allocated once and wiped only where it was written."""

    def __init__(self, shape: Triple) -> None:
        self.shape = shape
        self._rows = np.full(int(np.prod(shape)) + 1, -1, np.int32)

    def table(self, keys: Keys, wanted_nk: Keys, valid_nk: NDArray[np.bool_]) -> Table:
        """Rows of the cells `wanted_nk` among `keys`; len(keys) where invalid or empty."""
        outside = len(self._rows) - 1
        self._rows[keys] = np.arange(len(keys), dtype=np.int32)
        rows: Table = self._rows[np.where(valid_nk, wanted_nk, outside)]
        self._rows[keys] = -1
        rows[rows < 0] = len(keys)
        return rows


def unravel(keys: Keys, shape: Triple) -> tuple[Keys, Keys, Keys]:
    """Coordinates x, y, z of linear keys."""
    xy, z = np.divmod(keys, shape[2])
    x, y = np.divmod(xy, shape[1])
    return x, y, z


def window_table(keys_in: Keys, keys_out: Keys, row_map: RowMap, window: Window, shape_out: Triple) -> Table:
    """Rows of `keys_in` that each output voxel's window covers. int32 [N_out, K]."""
    shape_in = row_map.shape
    axes = []
    for axis, coordinate in enumerate(unravel(keys_out, shape_out)):
        start = coordinate * window.stride[axis] - window.padding[axis]
        position = start[:, None] + np.arange(window.kernel[axis])
        axes.append((position, (position >= 0) & (position < shape_in[axis])))
    (x, ok_x), (y, ok_y), (z, ok_z) = axes
    wanted = (x[:, :, None, None] * shape_in[1] + y[:, None, :, None]) * shape_in[2] + z[:, None, None, :]
    valid = ok_x[:, :, None, None] & ok_y[:, None, :, None] & ok_z[:, None, None, :]
    offsets = int(np.prod(window.kernel))
    return row_map.table(keys_in, wanted.reshape(-1, offsets), valid.reshape(-1, offsets))


def reached_keys(keys_in: Keys, shape_in: Triple, window: Window, shape_out: Triple) -> Keys:
    """Output voxels whose window covers at least one input voxel, ascending."""
    axes = []
    for axis, coordinate in enumerate(unravel(keys_in, shape_in)):
        stride = window.stride[axis]
        shifted = coordinate[:, None] + window.padding[axis] - np.arange(window.kernel[axis])
        output = shifted // stride
        axes.append((output, (shifted % stride == 0) & (output >= 0) & (output < shape_out[axis])))
    (x, ok_x), (y, ok_y), (z, ok_z) = axes
    keys = (x[:, :, None, None] * shape_out[1] + y[:, None, :, None]) * shape_out[2] + z[:, None, None, :]
    valid = ok_x[:, :, None, None] & ok_y[:, None, :, None] & ok_z[:, None, None, :]
    reached = np.zeros(int(np.prod(shape_out)), bool)
    reached[keys[valid]] = True
    return np.flatnonzero(reached)


class SparseTableBuilder:
    """Builds every table of one frame's sparse encoder. Holds the row maps, so build one per thread."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._shapes = level_shapes(geometry)
        self._maps = [RowMap(shape) for shape in self._shapes]

    def build(self, keys: Keys) -> dict[str, Table]:
        """Tables by graph input name for voxels `keys` (ascending linear keys of the finest level)."""
        tables: dict[str, Table] = {}
        levels = self._geometry.lidar_levels
        for level in range(levels + 1):
            shape, row_map = self._shapes[level], self._maps[level]
            tables[f"subm_table_{level}"] = window_table(keys, keys, row_map, SUBMANIFOLD, shape)
            window = TO_BEV if level == levels else level_windows(levels)[level]
            name = "out_table" if level == levels else f"down_table_{level}"
            next_shape = self._shapes[level + 1]
            next_keys = reached_keys(keys, shape, window, next_shape)
            tables[name] = window_table(keys, next_keys, row_map, window, next_shape)
            keys = next_keys
        tables["bev_table"] = self._bev_table(keys)
        return tables

    def _bev_table(self, keys: Keys) -> Table:
        x, y, z = self._shapes[-1]
        table = np.full(x * y * z, len(keys), np.int32)
        table[keys] = np.arange(len(keys), dtype=np.int32)
        return table.reshape(x * y, z)
