"""BEV pooling tables on the device: the kernels of pool.cu.

A calibration that holds the ego motion between the exposures changes with every frame, and its tables with it. They
are those of `altermoma.ops.pooling_tables`, bit by bit: runs in the order of image columns, bins and rows, lists of
cells in ascending order of their runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from altermoma.deploy.device_kernels import DeviceKernels, Pointer, PrefixSum
from altermoma.deploy.device_memory import Arena
from altermoma.deploy.engines import Shape
from altermoma.frames import Calibration
from altermoma.geometry import Geometry
from altermoma.ops.padding import Padding
from altermoma.ops.pooling_tables import pixel_rays, pool_bounds, too_many_runs

_I32, _F32, _F64 = np.dtype(np.int32), np.dtype(np.float32), np.dtype(np.float64)
Spec = tuple[tuple[int, ...], np.dtype[Any]]


class DevicePool:
    """Counts and tables of one calibration; holds every buffer.

    Args:
        kernels: compiled.
        geometry: of the model.
        padding: how large the tables are to be.
    """

    def __init__(self, kernels: DeviceKernels, geometry: Geometry, padding: Padding) -> None:
        self._kernels, self._cuda, self._geometry, self._padding = kernels, kernels.cuda, geometry, padding
        self._views, (self._height, self._width) = geometry.image.cameras, geometry.image.feature_hw
        self._bins, self._cells = geometry.depth_count, math.prod(geometry.pool_shape)
        self._blocks = self._views * self._width
        pixels = self._height * self._width
        given: dict[str, Spec] = {
            "directions": ((self._views, self._height, self._width, 3), _F64),
            "origins": ((self._views, 3), _F64),
            "depths": ((self._bins,), _F64),
            "bounds": ((7,), _F32),
        }
        self._given = Arena(self._cuda, given, mirrored=True)
        start, _, step = geometry.depth_bins
        self._given.write({"depths": start + step * np.arange(self._bins), "bounds": pool_bounds(geometry)})
        lists = self._cells + 1
        levels = len(geometry.fan_in)
        specs: dict[str, Spec] = {
            "cells": ((self._views * pixels * self._bins,), _I32),
            "runs": ((self._blocks * self._bins + 1,), _I32),
            "cursors": ((lists,), _I32),
            # A list of a cell has at most one entry for every lifted pixel of its runs.
            **{f"entries {n}": ((self._views * pixels * self._bins,), _I32) for n in (0, 1)},
            **{f"lengths {n}": ((lists,), _I32) for n in range(levels)},
            **{f"begins {n}": ((lists,), _I32) for n in range(levels)},
            **{f"pieces {n}": ((lists,), _I32) for n in range(1, levels)},
        }
        self._arena = Arena(self._cuda, specs, mirrored=False)
        self._found = Arena(self._cuda, {"counts": ((2 + levels - 1,), _I32)}, mirrored=True)
        self._sums = {n: PrefixSum(kernels, n) for n in (lists, self._blocks * self._bins + 1)}

    @property
    def size(self) -> int:
        """Bytes of device memory."""
        return self._arena.size

    def queue_measure(self, calibration: Calibration, stream: int) -> None:
        """Runs and pieces of the calibration, and their numbers for the host.

        Raises:
            DataError: a calibration that cannot be inverted.
        """
        directions, origins = pixel_rays(calibration, self._geometry)
        self._given.write({"directions": directions, "origins": origins})
        self._given.upload(stream)
        self._arena.clear("lengths 0", stream)
        self._found.clear("counts", stream)
        shape = (self._views, self._height, self._width, self._bins)
        rays = [_at(self._given, name) for name in ("directions", "origins", "depths", "bounds")]
        pixels = self._height * self._width
        lifted = self._views * pixels * self._bins
        lengths, runs = self._at("lengths 0"), self._at("runs")
        self._run("place_lifted", lifted, (*rays, self._views, pixels, self._bins, self._at("cells")), stream)
        self._run("count_runs", self._blocks * self._bins + 1, (self._at("cells"), *shape, runs, lengths), stream)
        self._sums[self._blocks * self._bins + 1].queue(runs, stream)
        most = (runs, self._blocks, self._bins, lengths, self._cells, _at(self._found, "counts"))
        self._run("find_most", max(self._blocks, self._cells), most, stream)
        self._scan("lengths 0", "begins 0", stream)
        *middle, last = self._geometry.fan_in
        for level, width in enumerate(middle, start=1):
            pieces, shorter = self._at(f"pieces {level}"), self._at(f"lengths {level}")
            arguments = (self._at(f"lengths {level - 1}"), self._cells, width, last, pieces, shorter)
            self._run("count_pieces", self._cells + 1, arguments, stream)
            self._sums[self._cells + 1].queue(pieces, stream)
            self._scan(f"lengths {level}", f"begins {level}", stream)
            total = Pointer(pieces + _I32.itemsize * self._cells)
            told = Pointer(self._found.address("counts") + _I32.itemsize * (1 + level))
            self._run("copy_integers", 1, (total, 1, told), stream)
        self._found.download(stream)

    def shapes(self) -> dict[str, Shape]:
        """Shapes of the tables, once what `queue_measure` queued is done.

        Raises:
            DataError: more runs in one cell than the product of `fan_in`.
        """
        most, longest, *pieces = self._found.host("counts").tolist()
        if longest > math.prod(self._geometry.fan_in):
            raise too_many_runs(longest, self._geometry)
        *middle, last = self._geometry.fan_in
        room = self._padding.size("pool_depth", max(most, 1))
        found: dict[str, Shape] = {"pool_depth": (self._blocks, room, self._height)}
        for level, (width, rows) in enumerate(zip(middle, pieces, strict=True), start=1):
            found[f"pool_sum_{level}"] = (self._padding.size(f"pool_sum_{level}", max(rows, 1)), width)
        return found | {f"pool_sum_{len(middle) + 1}": (self._cells, last)}

    def queue_tables(self, tables: Arena, stream: int) -> None:
        """Writes the tables, whose shapes are those of `shapes`."""
        room = tables.shapes["pool_depth"][1]
        shape = (self._views, self._height, self._width, self._bins)
        self._fill(tables, "pool_depth", math.prod(shape), stream)
        self._copy("begins 0", "cursors", stream)
        table, entries = _at(tables, "pool_depth"), self._at("entries 0")
        arguments = (self._at("cells"), self._at("runs"), *shape, room, table, self._at("cursors"), entries)
        self._run("fill_runs", self._blocks * self._bins, arguments, stream)
        # Every cursor has come to the end of its list.
        self._run("sort_lists", self._cells, (self._at("lengths 0"), self._at("cursors"), self._cells, entries), stream)
        *middle, last = self._geometry.fan_in
        rows = self._blocks * room
        for level, width in enumerate(middle, start=1):
            name = f"pool_sum_{level}"
            self._fill(tables, name, rows, stream)
            lists = (f"entries {(level - 1) % 2}", f"lengths {level - 1}", f"begins {level - 1}")
            after = (f"pieces {level}", f"begins {level}")
            cut = (
                *map(self._at, lists), self._cells, width, last, rows, *map(self._at, after),
                _at(tables, name), self._at(f"entries {level % 2}"),
            )  # fmt: skip
            self._run("cut_lists", self._cells, cut, stream)
            rows += tables.shapes[name][0]
        level, name = len(middle), f"pool_sum_{len(middle) + 1}"
        self._fill(tables, name, rows, stream)
        lists = (f"entries {level % 2}", f"lengths {level}", f"begins {level}")
        finish = (*map(self._at, lists), self._cells, last, _at(tables, name))
        self._run("fill_cells", self._cells * last, finish, stream)

    def _scan(self, values: str, sums: str, stream: int) -> None:
        self._copy(values, sums, stream)
        self._sums[self._cells + 1].queue(self._at(sums), stream)

    def _copy(self, source: str, target: str, stream: int) -> None:
        count = self._cells + 1
        self._run("copy_integers", count, (self._at(source), count, self._at(target)), stream)

    def _fill(self, tables: Arena, name: str, none: int, stream: int) -> None:
        count = math.prod(tables.shapes[name])
        self._kernels.run("tables", "fill_entries", count, (_at(tables, name), count, none), stream)

    def _at(self, name: str) -> Pointer:
        return _at(self._arena, name)

    def _run(self, kernel: str, threads: int, arguments: tuple[int | float, ...], stream: int) -> None:
        self._kernels.run("pool", kernel, threads, arguments, stream)


def _at(arena: Arena, name: str) -> Pointer:
    return Pointer(arena.address(name))
