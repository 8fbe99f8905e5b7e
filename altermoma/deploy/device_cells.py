"""Voxels and the sparse encoder's tables on the device: the kernels of voxels.cu, cells.cu and tables.cu in order.

`queue_measure` finds the cells of every level and counts them; the host reads the counts and chooses a bucket;
`queue_tables` writes the graph inputs. Both queue a fixed sequence of kernels, so that they can be captured. Order and
values are those of `altermoma.ops.voxels` and `altermoma.ops.sparse_tables`: rows in ascending order of (x, y, z),
within the four segments of their level; where there are too many voxels, those seen last in the cloud are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from altermoma.deploy.device_kernels import NULL, DeviceKernels, Pointer, PrefixSum
from altermoma.deploy.device_memory import Arena
from altermoma.deploy.engines import Shape
from altermoma.errors import UnsupportedError
from altermoma.geometry import Geometry
from altermoma.ops.padding import RowCounts, Segments
from altermoma.ops.sparse_tables import SUBMANIFOLD, TO_BEV, Window, level_shapes, level_windows, segment_names

_I32, _U64, _F32 = np.dtype(np.int32), np.dtype(np.uint64), np.dtype(np.float32)
_LARGE = 0x7F
"""Byte of which four make an integer larger than any number of points."""

_HIGHEST, _WIDEST = 61, 2048
"""Cells along z that a mask holds, and along y that a packed cell holds."""

_KINDS = 5
"""Counts of a level: of each segment, and of all."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Points on the device: float32 [capacity, features], and their number."""

    points: Pointer
    count: Pointer
    capacity: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the host learns of a frame.

    Attributes:
        counts: rows by level and segment.
        voxels: occupied cells, including those beyond the limit.
        crowded: a level has more rows than the device keeps: the host's tables, which drop the farthest, are needed.
    """

    counts: RowCounts
    voxels: int
    crowded: bool


class _Level:
    """Buffers of one level; the last, the encoder's output, has cells only."""

    def __init__(self, number: int, shape: tuple[int, int, int], capacity: int) -> None:
        self.number, self.shape, self.capacity = number, shape, capacity
        self.columns = (shape[0] + 2) * (shape[1] + 2)

    def specs(self, *, kinds: bool) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        n = self.number
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            f"masks_{n}": ((self.columns,), _U64),
            f"firsts_{n}": ((self.columns + 1,), _I32),
            f"cells_{n}": ((self.capacity,), _I32),
        }
        if kinds:
            found[f"kinds_{n}"] = ((self.capacity,), _I32)
            found[f"places_{n}"] = ((4 * self.capacity + 1,), _I32)
            found[f"ranks_{n}"] = ((self.capacity,), _I32)
        return found


class DeviceCells:
    """Holds every buffer, for clouds of up to `cloud.capacity` points.

    Args:
        kernels: compiled.
        geometry: of the model, with voxels.
        limits: the largest number of rows by level and segment, and of the output.
        cloud: where the points are.

    Raises:
        UnsupportedError: a grid that is too fine for packed cells.
    """

    def __init__(self, kernels: DeviceKernels, geometry: Geometry, limits: RowCounts, cloud: Cloud) -> None:
        shapes = level_shapes(geometry)
        if max(shape[2] for shape in shapes) > _HIGHEST or max(max(shape[:2]) for shape in shapes) > _WIDEST:
            raise UnsupportedError(
                f"a voxel grid of {' x '.join(map(str, shapes[0]))} cells",
                expected=f"at most {_WIDEST} x {_WIDEST} x {_HIGHEST} for the device kernels",
                remedy="prepare frames on the host (preparation='host')",
            )
        self._kernels, self._cuda, self._geometry, self._cloud = kernels, kernels.cuda, geometry, cloud
        capacities = [geometry.max_voxels, *(max(level) for level in limits.levels[1:]), limits.out]
        capacities[1:-1] = list(map(min, capacities[1:-1], geometry.level_rows or capacities[1:-1]))
        self._levels = [
            _Level(number, shape, capacity)
            for number, (shape, capacity) in enumerate(zip(shapes, capacities, strict=True))
        ]
        *inner, out = self._levels
        points, voxels, features = cloud.capacity, geometry.max_voxels, geometry.point_features
        specs = {name: spec for level in inner for name, spec in level.specs(kinds=True).items()} | out.specs(
            kinds=False
        )
        specs |= {
            "columns": ((points,), _I32),
            "bits": ((points,), _I32),
            "first_points": ((points,), _I32),
            "order": ((points + 1,), _I32),
            "kept": ((points + 1,), _I32),
            "slots": ((voxels, geometry.max_points_per_voxel), _I32),
            "means": ((voxels, features), _F32),
        }
        self._arena = Arena(self._cuda, specs, mirrored=False)
        self._constants = Arena(self._cuda, {"range": ((6,), _F32)}, mirrored=True)
        self._constants.write({"range": np.array((*geometry.point_range[:3], *geometry.voxel_size), np.float32)})
        self._constants.upload(self._cuda.stream)
        self._cuda.synchronise()
        self._counts = Arena(self._cuda, {"counts": ((_KINDS * len(inner) + 2,), _I32)}, mirrored=True)
        sizes = {
            points + 1,
            *(level.columns + 1 for level in self._levels),
            *(4 * level.capacity + 1 for level in inner),
        }
        self._sums = {size: PrefixSum(kernels, size) for size in sizes}

    @property
    def size(self) -> int:
        """Bytes of device memory."""
        return self._arena.size

    def queue_measure(self, stream: int) -> None:
        """Voxels, the cells of every level and their segments, and the counts for the host."""
        self._voxels(stream)
        for level, after in zip(self._levels, self._levels[1:], strict=False):
            self._list(level, stream)
            self._segments(level, stream)
            window = (*level_windows(self._geometry.lidar_levels), TO_BEV)[level.number]
            arguments = (
                self._at("masks", level),
                *level.shape[:2],
                *_flat(window),
                *after.shape,
                self._at("masks", after),
            )
            self._run("cells", "reach_cells", after.shape[0] * after.shape[1], arguments, stream)
            self._number(after, stream)
        out = self._levels[-1]
        self._list(out, stream)
        end = _KINDS * (len(self._levels) - 1)
        self._run("cells", "copy_count", 1, (self._rows(out), self._count_at(end)), stream)
        self._run("cells", "copy_count", 1, (self._end("order", self._cloud.capacity), self._count_at(end + 1)), stream)
        self._counts.download(stream)

    def measured(self) -> Measured:
        """The counts, once what `queue_measure` queued is done."""
        *levels, out, voxels = self._counts.host("counts").tolist()
        by_level = [levels[i : i + _KINDS] for i in range(0, len(levels), _KINDS)]
        crowded = out > self._levels[-1].capacity or any(
            rows[4] > level.capacity for rows, level in zip(by_level, self._levels, strict=False)
        )
        counts = tuple(cast(Segments, tuple(rows[:4])) for rows in by_level)
        return Measured(counts=RowCounts(levels=counts, out=out), voxels=voxels, crowded=crowded)

    def shapes(self, rooms: RowCounts) -> dict[str, Shape]:
        """Graph inputs for these rooms; those that name the same rows lie behind each other."""
        inner, windows = self._levels[:-1], level_windows(self._geometry.lidar_levels)
        found: dict[str, Shape] = {"voxels": (sum(rooms.levels[0]), self._geometry.point_features)}
        for level, room in zip(inner, rooms.levels, strict=True):
            for name, rows, heights in zip(
                segment_names(f"subm_table_{level.number}"), room, (1, 2, 2, 3), strict=True
            ):
                found[name] = (rows, 9 * heights)
            if level.number < len(windows):
                after = rooms.levels[level.number + 1]
                for name, rows in zip(segment_names(f"down_table_{level.number}"), after, strict=True):
                    found[name] = (rows, 27)
        found["out_table"] = (rooms.out, TO_BEV.kernel[2])
        x, y, z = self._levels[-1].shape
        return found | {"bev_table": (x * y, z)}

    def queue_tables(self, inputs: Arena, stream: int) -> None:
        """Writes voxels and tables into `inputs`, whose shapes are those of `shapes`."""
        inner, out = self._levels[:-1], self._levels[-1]
        rooms = [[inputs.shapes[name][0] for name in segment_names(f"subm_table_{level.number}")] for level in inner]
        inputs.clear("voxels", stream)
        for level, room in zip(inner, rooms, strict=True):
            begins = np.cumsum([0, *room]).tolist()
            names = segment_names(f"subm_table_{level.number}")
            last = "out_table" if level is inner[-1] else segment_names(f"down_table_{level.number}")[-1]
            self._fill(inputs, names[0], last, begins[4], stream)
            arguments = (*self._of(level, "kinds", "places"), self._rows(level), level.capacity, *begins[:4])
            self._run("tables", "place_rows", level.capacity, (*arguments, self._at("ranks", level)), stream)
        self._fill(inputs, "bev_table", "bev_table", inputs.shapes["out_table"][0], stream)
        first, features = inner[0], self._geometry.point_features
        means = (self._pointer("means"), self._at("ranks", first), self._rows(first), features, _at(inputs, "voxels"))
        self._run("tables", "place_features", first.capacity * features, means, stream)
        for level, after, room in zip(inner, self._levels[1:], rooms, strict=True):
            none = sum(room)
            names = segment_names(f"subm_table_{level.number}")
            self._tables(level, level, SUBMANIFOLD, none, [_at(inputs, name) for name in names], stream)
            window = (*level_windows(self._geometry.lidar_levels), TO_BEV)[level.number]
            names = ("out_table",) if after is out else segment_names(f"down_table_{level.number}")
            self._tables(level, after, window, none, [_at(inputs, name) for name in names], stream)
        cells = (self._at("cells", out), self._rows(out), *out.shape[1:], _at(inputs, "bev_table"))
        self._run("tables", "fill_bev", out.capacity, cells, stream)

    def _voxels(self, stream: int) -> None:
        cloud, geometry, first = self._cloud, self._geometry, self._levels[0]
        x, y, z = first.shape
        for level in self._levels:
            self._arena.clear(f"masks_{level.number}", stream)
        for name in ("first_points", "slots"):
            self._cuda.fill(self._arena.address(name), _LARGE, self._arena.nbytes(name), stream)
        self._arena.clear("kept", stream)
        columns, bits, firsts = self._pointer("columns"), self._pointer("bits"), self._pointer("first_points")
        order, kept, masks = self._pointer("order"), self._pointer("kept"), self._at("masks", first)
        points = (cloud.points, cloud.count, geometry.point_features)

        def run(kernel: str, threads: int, *arguments: int | float) -> None:
            self._run("voxels", kernel, threads, arguments, stream)

        # The cell that SECOND's encoders add along z never holds points.
        run("mark_points", cloud.capacity, *points, _at(self._constants, "range"), x, y, z - 1, columns, bits, masks)
        self._number(first, stream)
        run("find_rows", cloud.capacity, cloud.count, columns, masks, self._at("firsts", first), bits, firsts)
        run("flag_first", cloud.capacity + 1, cloud.count, cloud.capacity, columns, bits, firsts, order)
        self._sums[cloud.capacity + 1].queue(order, stream)
        limit = geometry.max_voxels
        run("free_cells", cloud.capacity, cloud.count, columns, bits, firsts, order, limit, masks, kept)
        self._sums[cloud.capacity + 1].queue(kept, stream)
        run("renumber_columns", first.columns, masks, first.columns, kept, self._at("firsts", first))
        most, slots = geometry.max_points_per_voxel, self._pointer("slots")
        run("collect_points", cloud.capacity, cloud.count, columns, bits, masks, kept, most, slots)
        run("mean_points", limit, *points, self._rows(first), most, slots, self._pointer("means"))

    def _number(self, level: _Level, stream: int) -> None:
        """First row of every column, and behind the last the number of rows."""
        arguments = (self._at("masks", level), level.columns, self._at("firsts", level))
        self._run("cells", "count_columns", level.columns + 1, arguments, stream)
        self._sums[level.columns + 1].queue(self._at("firsts", level), stream)

    def _list(self, level: _Level, stream: int) -> None:
        x, y, _ = level.shape
        arguments = (*self._of(level, "masks", "firsts"), x, y, level.capacity, self._at("cells", level))
        self._run("cells", "list_cells", x * y, arguments, stream)

    def _segments(self, level: _Level, stream: int) -> None:
        self._arena.clear(f"places_{level.number}", stream)
        cells, masks, kinds, places = self._of(level, "cells", "masks", "kinds", "places")
        rows = self._rows(level)
        arguments = (cells, rows, masks, level.shape[1], level.capacity, kinds, places)
        self._run("cells", "find_kinds", level.capacity, arguments, stream)
        self._sums[4 * level.capacity + 1].queue(places, stream)
        counts = self._count_at(_KINDS * level.number)
        self._run("cells", "count_kinds", _KINDS, (places, rows, level.capacity, counts), stream)

    def _tables(
        self, source: _Level, target: _Level, window: Window, none: int, tables: list[Pointer], stream: int
    ) -> None:
        kinds = self._of(target, "kinds", "places") if len(tables) == 4 else (NULL, NULL)
        near = int(window is SUBMANIFOLD)
        arguments = (
            *self._of(source, "masks", "firsts", "ranks"), source.shape[1], none,
            self._at("cells", target), self._rows(target), target.capacity, *kinds, near, *_flat(window),
            *(tables if len(tables) == 4 else [*tables, NULL, NULL, NULL]),
        )  # fmt: skip
        threads = target.capacity * window.kernel[0] * window.kernel[1]
        self._run("tables", "fill_tables", threads, arguments, stream)

    def _fill(self, inputs: Arena, first: str, last: str, none: int, stream: int) -> None:
        """All entries from one tensor to another, which lie behind each other."""
        count = (inputs.address(last) + inputs.nbytes(last) - inputs.address(first)) // _I32.itemsize
        self._run("tables", "fill_entries", count, (_at(inputs, first), count, none), stream)

    def _rows(self, level: _Level) -> Pointer:
        """Where the number of a level's rows is; the finest level's was numbered before cells were freed."""
        if level.number == 0:
            return self._end("kept", self._cloud.capacity)
        return self._end(f"firsts_{level.number}", level.columns)

    def _end(self, name: str, index: int) -> Pointer:
        return Pointer(self._arena.address(name) + _I32.itemsize * index)

    def _count_at(self, index: int) -> Pointer:
        return Pointer(self._counts.address("counts") + _I32.itemsize * index)

    def _pointer(self, name: str) -> Pointer:
        return _at(self._arena, name)

    def _at(self, name: str, level: _Level) -> Pointer:
        return self._pointer(f"{name}_{level.number}")

    def _of(self, level: _Level, *names: str) -> tuple[Pointer, ...]:
        return tuple(self._at(name, level) for name in names)

    def _run(self, file: str, kernel: str, threads: int, arguments: tuple[int | float, ...], stream: int) -> None:
        self._kernels.run(file, kernel, threads, arguments, stream)


def _at(arena: Arena, name: str) -> Pointer:
    return Pointer(arena.address(name))


def _flat(window: Window) -> tuple[int, ...]:
    return (*window.kernel, *window.stride, *window.padding)
