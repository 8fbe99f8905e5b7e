"""Compiled loops over points and lifted pixels: into voxels, depth images, runs and cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.ops.column_kernels import bits_below, lowest_bit
from altermoma.ops.compiled import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


@compiled("UniTuple(int64, 2)(float32[:, ::1], float32[:, ::1], int64[::1], int64, uint64[::1], int64[::1])")
def mark_voxels(points: F32, low_size_23: F32, shape_3: I64, limit: int, masks: U64, keys_p: I64) -> tuple[int, int]:
    """Marks the first `limit` cells that points fall into; bit z of mask x * Y + y.

    Behind the columns' masks follow masks of 64 columns each: which of them hold a cell (`column_masks`).

    Writes the cell 64 * (x * Y + y) + z of each point: -1 outside of the grid, -2 - cell where the limit was reached
    before.

    Returns:
        Number of cells marked, number of points whose cell was not.
    """
    marked, refused, columns = 0, 0, shape_3[0] * shape_3[1]
    low, size = low_size_23
    for p in range(len(points)):
        x = np.floor((points[p, 0] - low[0]) / size[0])
        y = np.floor((points[p, 1] - low[1]) / size[1])
        z = np.floor((points[p, 2] - low[2]) / size[2])
        # Compared before the cast, which far coordinates would overflow.
        inside = x >= 0 and x < shape_3[0] and y >= 0 and y < shape_3[1] and z >= 0 and z < shape_3[2]
        if not inside:
            keys_p[p] = -1
            continue
        column = np.int64(x) * shape_3[1] + np.int64(y)
        key = column << 6 | np.int64(z)
        bit = np.uint64(1) << np.uint64(z)
        # Without a branch for what is new, which would be mispredicted every third time.
        new = masks[column] & bit == 0
        if marked == limit and new:
            keys_p[p] = -2 - key
            refused += 1
            continue
        masks[column] |= bit
        masks[columns + (column >> 6)] |= np.uint64(1) << np.uint64(column & 63)
        marked += int(new)
        keys_p[p] = key
    return marked, refused


@compiled("void(uint64[::1], int64, int32[::1], int64[::1])")
def list_voxels(masks: U64, grid_height: int, firsts: I32, keys_n: I64) -> None:
    """First row of every column, and the ascending linear keys in a grid of `grid_height` cells along z."""
    row = 0
    for word in range(len(firsts), len(masks)):
        occupied = masks[word]
        while occupied != 0:
            column = (word - len(firsts)) * 64 + lowest_bit(occupied)
            occupied &= occupied - np.uint64(1)
            firsts[column] = row
            mask = masks[column]
            while mask != 0:
                keys_n[row] = column * grid_height + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                row += 1


@compiled("void(int64[::1], uint64[::1], int32[::1])")
def keys_to_rows(keys_p: I64, masks: U64, firsts: I32) -> None:
    """Writes the voxel's row over the cell of each point, -1 over that of points without a voxel."""
    for p in range(len(keys_p)):
        if keys_p[p] < 0:
            keys_p[p] = -1
        else:
            column = np.uint64(keys_p[p] >> 6)
            keys_p[p] = firsts[column] + bits_below(masks[column], keys_p[p] & 63)


@compiled("void(float32[:, ::1], int64[::1], int64, float32[:, ::1])")
def mean_points(points: F32, rows_p: I64, most: int, means_nc: F32) -> None:
    """Mean of the first `most` points of each voxel; `means_nc` holds zeros before."""
    counts = np.zeros(len(means_nc), np.int32)
    channels = means_nc.shape[1]
    for p in range(len(points)):
        row = rows_p[p]
        if row >= 0 and counts[row] < most:
            counts[row] += 1
            for c in range(channels):
                means_nc[row, c] += points[p, c]
    for row in range(len(means_nc)):
        for c in range(channels):
            means_nc[row, c] /= np.float32(counts[row])


@compiled("int64(float32[:, ::1])")
def count_unusable(points: F32) -> int:
    """Number of points that hold NaN or infinity."""
    found = 0
    for p in range(len(points)):
        total = np.float32(0)
        for value in points[p]:
            # Zero, but NaN for what is no number.
            total += value * np.float32(0)
        found += total != 0
    return found


@compiled("void(int64[::1], int64, uint64[::1], int64)")
def wipe_voxels(keys_n: I64, grid_height: int, masks: U64, columns: int) -> None:
    """Empties the columns of these cells."""
    for row in range(len(keys_n)):
        column = keys_n[row] // grid_height
        masks[column] = 0
        masks[columns + (column >> 6)] = 0


@compiled("void(float64[:, :, ::1], float64[:, ::1], float64[::1], float32[::1], int32[::1])")
def place_lifted(directions_vn3: F64, origins_v3: F64, depth_d: F64, bounds_7: F32, cells_q: I32) -> None:
    """Cell x * Y + y that each lifted pixel (view, pixel, bin) falls into, or -1.

    `bounds_7` holds the lowest x and y, the cell's size, the lowest and the highest z, metres, and the cells X and Y.
    """
    entry = 0
    for view in range(directions_vn3.shape[0]):
        for pixel in range(directions_vn3.shape[1]):
            for depth in depth_d:
                x = np.float32(directions_vn3[view, pixel, 0] * depth + origins_v3[view, 0])
                y = np.float32(directions_vn3[view, pixel, 1] * depth + origins_v3[view, 1])
                z = np.float32(directions_vn3[view, pixel, 2] * depth + origins_v3[view, 2])
                x = (x - bounds_7[0]) / bounds_7[2]
                y = (y - bounds_7[1]) / bounds_7[2]
                cell = np.int32(-1)
                # Truncation instead of floor puts points up to one cell below the range into cell 0, as BEVFusion does.
                if x > -1 and x < bounds_7[5] and y > -1 and y < bounds_7[6] and z >= bounds_7[3] and z < bounds_7[4]:
                    cell = np.int32(np.int64(x) * np.int64(bounds_7[6]) + np.int64(y))
                cells_q[entry] = cell
                entry += 1


@compiled("int64(int32[:, :, :, ::1], int32[::1])")
def count_runs(cells_vhwd: I32, counts_n: I32) -> int:
    """Counts the runs that reach each cell (altermoma.ops.pooling_tables); returns the most runs of one column."""
    views, height, width, bins = cells_vhwd.shape
    most = 0
    for view in range(views):
        for column in range(width):
            runs = 0
            for depth in range(bins):
                before = np.int32(-1)
                for row in range(height):
                    cell = cells_vhwd[view, row, column, depth]
                    if cell >= 0 and cell != before:
                        counts_n[cell] += 1
                        runs += 1
                    before = cell
            most = max(most, runs)
    return most


@compiled("void(int32[:, :, :, ::1], int32[::1], int32[:, :, ::1], int32[::1])")
def fill_runs(cells_vhwd: I32, next_slots: I32, table: I32, rows_of_cells: I32) -> None:
    """Enters every lifted pixel into its run, and the run's row into the list of its cell.

    `next_slots` is each cell's first free entry in `rows_of_cells`, and moves on.
    """
    views, height, width, bins = cells_vhwd.shape
    table[:] = np.int32(views * height * width * bins)
    for view in range(views):
        for column in range(width):
            block, run = view * width + column, -1
            for depth in range(bins):
                before = np.int32(-1)
                for row in range(height):
                    cell = cells_vhwd[view, row, column, depth]
                    if cell >= 0:
                        if cell != before:
                            run += 1
                            rows_of_cells[next_slots[cell]] = np.int32(block * table.shape[1] + run)
                            next_slots[cell] += 1
                        table[block, run, row] = np.int32(((view * height + row) * width + column) * bins + depth)
                    before = cell


@compiled("void(int32[::1], int32[::1], int32[::1], int64, int32[:, ::1], int32[::1])")
def fill_sums(entries: I32, lengths: I32, chunks: I32, first_row: int, table: I32, shortened: I32) -> None:
    """Cuts lists into `chunks` rows of the table each; those with none are copied, the others become those rows."""
    start, row, out = 0, 0, 0
    for cell in range(len(lengths)):
        length = lengths[cell]
        if chunks[cell] == 0:
            for i in range(length):
                shortened[out + i] = entries[start + i]
            out += length
        else:
            for i in range(length):
                table[row + i // table.shape[1], i % table.shape[1]] = entries[start + i]
            for i in range(chunks[cell]):
                shortened[out + i] = np.int32(first_row + row + i)
            row, out = row + chunks[cell], out + chunks[cell]
        start += length


@compiled("void(int32[::1], int32[::1], int32[:, ::1])")
def fill_cells(entries: I32, lengths: I32, table: I32) -> None:
    """Writes each list into its own row of the table."""
    start = 0
    for cell in range(len(lengths)):
        for i in range(lengths[cell]):
            table[cell, i] = entries[start + i]
        start += lengths[cell]


@compiled("void(float32[:, ::1], float32[:, :, ::1], float32[::1], float32[:, :, ::1])")
def draw_depth(points: F32, projections_v34: F32, scale_left_top: F32, depth_vhw: F32) -> None:
    """Writes each point's metres along the optical axis at its network pixel of every view; later points win."""
    views, height, width = depth_vhw.shape
    scale, left, top = scale_left_top
    for view in range(views):
        m = projections_v34[view]
        for p in range(len(points)):
            x, y, z = points[p, 0], points[p, 1], points[p, 2]
            metres = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
            # Written so that NaN is refused too.
            if not metres > np.float32(1e-3):
                continue
            column = np.floor((m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / metres * scale - left)
            row = np.floor((m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / metres * scale - top)
            if column >= 0 and column < width and row >= 0 and row < height:
                depth_vhw[view, np.int64(row), np.int64(column)] = metres
