"""Index tables that turn a sparse convolution into one gather and one matrix product.

`table[N_out, K]` holds for each output voxel and kernel offset the row of the input voxel, or N_in where there is
none. Offsets are ordered (x, y, z) with z fastest, as spconv 2 stores its weights (out, kx, ky, kz, in).

Most neighbourhoods are empty below or above. So the rows of a level are sorted into four segments by the heights that
their 3 x 3 x 3 neighbourhood needs, and a submanifold convolution has one table per segment, with those offsets only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import RecipeError
from altermoma.geometry import Geometry
from altermoma.ops import column_kernels as kernels
from altermoma.ops.column_kernels import MAX_HEIGHT
from altermoma.ops.padding import RowCounts, Segments
from altermoma.ops.recycled import RecycledMemory

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


SEGMENTS: Mapping[str, tuple[int, int]] = {"mid": (1, 2), "low": (0, 2), "high": (1, 3), "all": (0, 3)}
"""The segments of a level's rows, in order: first and behind the last of the kernel's heights that they need."""


def segment_names(table: str) -> tuple[str, ...]:
    """Graph inputs that make up a table: one per segment of its rows."""
    return tuple(f"{table}_{segment}" for segment in SEGMENTS)


def _segment_window(first: int, end: int) -> Window:
    """The heights of the submanifold window that a segment needs."""
    return Window(kernel=(3, 3, end - first), stride=(1, 1, 1), padding=(1, 1, 1 - first))


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
        self._memory = RecycledMemory()
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

    def kinds(self, cells_3n: Cells) -> tuple[Cells, Segments]:
        """The segment of each occupied cell, and the cells of each segment."""
        counts, kinds = np.empty(4, np.int64), np.empty(cells_3n.shape[1], np.int32)
        kernels.count_kinds(cells_3n, self._masks, counts, kinds)
        mid, low, high, both = counts.tolist()
        return kinds, (mid, low, high, both)

    def table(self, outputs_3m: Cells, window: Window, ranks_n1: Cells, room: int | None = None) -> Table:
        """For each output and window offset the rank of the occupied cell there, or the last rank for none: [M, K].

        `ranks_n1` says where each of the N occupied cells stands among the rows; `room` is the number of the table's
        rows, of which those behind the outputs hold nothing but "none".
        """
        outputs = outputs_3m.shape[1]
        table = self._memory.empty((outputs if room is None else room, math.prod(window.kernel)), np.int32)
        kernels.fill_table(self._masks, self._firsts, ranks_n1, window.array, outputs_3m, table[:outputs])
        table[outputs:] = ranks_n1[-1]
        return table

    def table_of_reached(
        self, cells_3n: Cells, ranks_n1: Cells, window: Window, target: OccupancyGrid, ranks_m1: Cells
    ) -> Table:
        """As `table`, for all occupied cells of `target`, whose rows are told by `ranks_m1`."""
        table = self._memory.empty((int(ranks_m1[-1]), math.prod(window.kernel)), np.int32)
        outputs = target._masks, target._firsts, ranks_m1
        kernels.fill_reached(cells_3n, ranks_n1, window.array, outputs, table)
        return table

    def wipe(self, cells_3n: Cells) -> None:
        """Frees these cells."""
        kernels.wipe(cells_3n, self._masks)


@dataclass(frozen=True)
class SortedRows:
    """Cells in the order of their rows, the row of every cell in ascending order, cells and rows of each segment."""

    cells_3n: Cells
    ranks_n1: Cells
    counts: Segments
    rooms: Segments

    @classmethod
    def lay_out(cls, cells_3n: Cells, kinds_n: Cells, counts: Segments, rooms: Segments) -> SortedRows:
        """Sorts cells by segment; inside of a segment they keep their order."""
        begins = np.cumsum((0, *rooms), dtype=np.int64)
        ranks, cells = np.empty(len(kinds_n) + 1, np.int32), np.empty((3, int(begins[-1])), np.int32)
        kernels.place_rows(cells_3n, kinds_n, begins, ranks, cells)
        return cls(cells, ranks, counts, rooms)

    def segments(self) -> Iterator[tuple[str, Cells, int]]:
        """Name, cells and number of rows of the segments."""
        begin = 0
        for name, count, room in zip(SEGMENTS, self.counts, self.rooms, strict=True):
            yield name, self.cells_3n[:, begin : begin + count], room
            begin += room


@dataclass(frozen=True)
class _Level:
    """The cells of one level in ascending order, the segment of each, and the cells of each segment."""

    cells_3n: Cells
    kinds_n: Cells
    counts: Segments


class SparseTableBuilder:
    """Builds every table of one frame's sparse encoder. Holds the grids, so build one per thread.

    Attributes:
        dropped: voxels of the last frame that were left out because a level had more than `Geometry.level_rows`.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.dropped = 0
        self._geometry = geometry
        self._windows = level_windows(geometry.lidar_levels)
        self._shapes = level_shapes(geometry)
        self._grids = [OccupancyGrid(shape) for shape in self._shapes]

    def build(
        self, keys_n: Keys, rooms_for: Callable[[RowCounts], RowCounts] = RowCounts.least
    ) -> tuple[Table, dict[str, Table]]:
        """Tables for voxels `keys_n` (ascending linear keys of the finest level).

        `rooms_for` says how many rows each segment gets. With more than there are cells the same tables fit many
        frames, as engines that are captured for one shape need it; features of the cells do not change.

        Returns:
            The row of every voxel and, as the last, the number of rows; the tables by graph input name.
        """
        self.dropped = 0
        levels, reached = self._occupy(keys_n)
        counts = RowCounts(levels=tuple(level.counts for level in levels), out=reached.shape[1])
        rooms = rooms_for(counts)
        rows = [
            SortedRows.lay_out(level.cells_3n, level.kinds_n, level.counts, room)
            for level, room in zip(levels, rooms.levels, strict=True)
        ]
        tables: dict[str, Table] = {}
        for number, (grid, of) in enumerate(zip(self._grids, rows, strict=False)):
            for segment, members, room in of.segments():
                near = _segment_window(*SEGMENTS[segment])
                tables[f"subm_table_{number}_{segment}"] = grid.table(members, near, of.ranks_n1, room)
            if number < len(self._windows):
                after, cells = rows[number + 1], levels[number].cells_3n
                window, target = self._windows[number], self._grids[number + 1]
                whole = grid.table_of_reached(cells, of.ranks_n1, window, target, after.ranks_n1)
                parts = np.split(whole, np.cumsum(after.rooms)[:-1])
                tables.update(zip(segment_names(f"down_table_{number}"), parts, strict=True))
            else:
                tables["out_table"] = grid.table(reached, TO_BEV, of.ranks_n1, rooms.out)
        tables["bev_table"] = self._bev_table(reached, rooms.out)
        for grid, cells in zip(self._grids, (*(level.cells_3n for level in levels), reached), strict=True):
            grid.wipe(cells)
        return rows[0].ranks_n1, tables

    def _occupy(self, keys_n: Keys) -> tuple[list[_Level], Cells]:
        """The cells of every level, and those of the encoder's output."""
        levels: list[_Level] = []
        cells = self._grids[0].enter(keys_n)
        for number, (grid, window) in enumerate(zip(self._grids, (*self._windows, TO_BEV), strict=False)):
            levels.append(_Level(cells, *grid.kinds(cells)))
            reached = grid.reach(self._grids[number + 1], cells, window)
            cells = reached if window is TO_BEV else self._within_limit(number + 1, reached)
        return levels, cells

    def _within_limit(self, level: int, cells_3n: Cells) -> Cells:
        """The cells that a level accepts, nearest to the LiDAR first; the others are freed and counted."""
        limits = self._geometry.level_rows
        if not limits or cells_3n.shape[1] <= limits[level - 1]:
            return cells_3n
        kept = np.sort(np.argsort(self._squared_distances(level, cells_3n), kind="stable")[: limits[level - 1]])
        grid, shape = self._grids[level], self._shapes[level]
        self.dropped += cells_3n.shape[1] - len(kept)
        grid.wipe(cells_3n)
        return grid.enter(np.ravel_multi_index(tuple(cells_3n[:, kept]), shape).astype(np.int64))

    def _squared_distances(self, level: int, cells_3n: Cells) -> NDArray[np.float64]:
        """Of cells from the LiDAR in the ground plane, in squared metres."""
        low, size = np.array(self._geometry.point_range[:2]), np.array(self._geometry.voxel_size[:2]) * (1 << level)
        return np.square(low[:, None] + (cells_3n[:2] + 0.5) * size[:, None]).sum(axis=0)  # type: ignore[no-any-return]

    def _bev_table(self, cells_3n: Cells, none: int) -> Table:
        x, y, z = self._shapes[-1]
        table = np.full((x, y, z), none, np.int32)
        table[tuple(cells_3n)] = np.arange(cells_3n.shape[1], dtype=np.int32)
        return table.reshape(x * y, z)


def in_rows(features_nc: NDArray[np.float32], places_n1: Table) -> NDArray[np.float32]:
    """Voxel features in the order of the tables' rows; rows without a voxel are zero."""
    rows = np.zeros((places_n1[-1], features_nc.shape[1]), np.float32)
    rows[places_n1[:-1]] = features_nc
    return rows
