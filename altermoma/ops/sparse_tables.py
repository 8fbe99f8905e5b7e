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
Cells = NDArray[np.int32]


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
    """A dense cell -> row map with a border of one empty cell, so that windows need no bounds checks.

    Allocated once per grid; a frame wipes only what it wrote.
    """

    def __init__(self, shape: Triple) -> None:
        self.shape = shape
        self._step_x, self._step_y = (shape[1] + 2) * (shape[2] + 2), shape[2] + 2
        self._rows = np.full((shape[0] + 2) * self._step_x, -1, np.int32)

    def _cell(self, *xyz: Cells) -> NDArray[np.intp]:
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
    """Cells of a grid, in ascending order of (x * Y + y) * Z + z."""

    xyz: tuple[Cells, Cells, Cells]

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
        # Cells covered by fewer outputs than `reach` repeat the last one, which marks it twice.
        candidates.append(np.minimum(low[covered, None] + reach, high[covered, None]))
    x, y, z = candidates
    keys = (x[:, :, None, None] * shape_out[1] + y[:, None, :, None]) * shape_out[2] + z[:, None, None, :]
    marks = np.zeros(int(np.prod(shape_out)), bool)
    marks[keys.ravel()] = True
    return Coordinates.of_keys(np.flatnonzero(marks), shape_out)


class SparseTableBuilder:
    """Builds every table of one frame's sparse encoder. Holds the row maps, so build one per thread."""

    def __init__(self, geometry: Geometry) -> None:
        self._levels = geometry.lidar_levels
        self._shapes = level_shapes(geometry)
        self._maps = [RowMap(shape) for shape in self._shapes[:-1]]

    def build(self, keys: Keys) -> dict[str, Table]:
        """Tables by graph input name for voxels `keys` (ascending linear keys of the finest level)."""
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

    def _bev_table(self, cells: Coordinates) -> Table:
        x, y, z = self._shapes[-1]
        table = np.full((x, y, z), len(cells), np.int32)
        table[cells.xyz] = np.arange(len(cells), dtype=np.int32)
        return table.reshape(x * y, z)
