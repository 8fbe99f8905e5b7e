"""Index tables that turn a sparse convolution into one gather and one matrix product.

`table[N_out, K]` holds for each output voxel and kernel offset the row of the input voxel, or N_in where there is
none. Offsets are ordered (x, y, z) with z fastest, as spconv 2 stores its weights (out, kx, ky, kz, in).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import RecipeError
from altermoma.geometry import Geometry
from altermoma.ops import column_kernels as kernels
from altermoma.ops.column_kernels import MAX_HEIGHT

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

    @property
    def array(self) -> NDArray[np.int64]:
        """Kernel, stride and padding as rows."""
        return np.array((self.kernel, self.stride, self.padding), np.int64)

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


class OccupancyGrid:
    """The occupied cells of one grid, as bit masks per column. Allocated once; a frame wipes only what it wrote."""

    def __init__(self, shape: Triple) -> None:
        if shape[2] > MAX_HEIGHT:
            raise RecipeError(
                f"a voxel grid of {shape[2]} cells along z",
                expected=f"at most {MAX_HEIGHT}",
                remedy="take higher voxels or a smaller range along z",
            )
        self.height = shape[2]
        self._masks = np.zeros((shape[0] + 2, shape[1] + 2), np.uint64)
        self._firsts = np.zeros(self._masks.shape, np.int32)

    def enter(self, keys_n: Keys) -> Cells:
        """Occupies the cells of ascending linear keys; gives their coordinates."""
        cells = np.empty((3, len(keys_n)), np.int32)
        kernels.enter_keys(keys_n, self.height, self._masks, self._firsts, cells)
        return cells

    def reach(self, target: OccupancyGrid, cells_3n: Cells, window: Window) -> Cells:
        """Occupies the cells of `target` whose window covers an occupied cell of this grid; gives them, ascending."""
        kernels.mark_reached(cells_3n, self._masks, window.array, target._masks, target.height)
        reached = np.empty((3, kernels.number_rows(target._masks, target._firsts)), np.int32)
        kernels.list_cells(target._masks, target.height, reached)
        return reached

    def table(self, outputs_3m: Cells, window: Window, none: int) -> Table:
        """For each output and window offset the row of the occupied cell there, or `none`: [M, K]."""
        table = np.empty((outputs_3m.shape[1], math.prod(window.kernel)), np.int32)
        kernels.fill_table(self._masks, self._firsts, window.array, outputs_3m, none, table)
        return table

    def wipe(self, cells_3n: Cells) -> None:
        """Frees these cells."""
        kernels.wipe(cells_3n, self._masks)


class SparseTableBuilder:
    """Builds every table of one frame's sparse encoder. Holds the grids, so build one per thread."""

    def __init__(self, geometry: Geometry) -> None:
        self._windows = (*level_windows(geometry.lidar_levels), TO_BEV)
        self._shapes = level_shapes(geometry)
        self._grids = [OccupancyGrid(shape) for shape in self._shapes]

    def build(self, keys_n: Keys) -> dict[str, Table]:
        """Tables by graph input name for voxels `keys_n` (ascending linear keys of the finest level)."""
        tables: dict[str, Table] = {}
        cells = self._grids[0].enter(keys_n)
        for level, (grid, window) in enumerate(zip(self._grids, self._windows, strict=False)):
            rows, target = cells.shape[1], self._grids[level + 1]
            tables[f"subm_table_{level}"] = grid.table(cells, SUBMANIFOLD, rows)
            outputs = grid.reach(target, cells, window)
            name = "out_table" if window is TO_BEV else f"down_table_{level}"
            tables[name] = grid.table(outputs, window, rows)
            grid.wipe(cells)
            cells = outputs
        self._grids[-1].wipe(cells)
        tables["bev_table"] = self._bev_table(cells)
        return tables

    def _bev_table(self, cells_3n: Cells) -> Table:
        x, y, z = self._shapes[-1]
        table = np.full((x, y, z), cells_3n.shape[1], np.int32)
        table[tuple(cells_3n)] = np.arange(cells_3n.shape[1], dtype=np.int32)
        return table.reshape(x * y, z)
