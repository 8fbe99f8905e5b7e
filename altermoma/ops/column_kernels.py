"""Compiled loops over an occupancy grid that holds one bit mask per column (x, y).

Masks are [X + 2, Y + 2] with column (x, y) at [x + 1, y + 1], so that windows need no bounds checks; cell z is bit
z + 1 of its mask. Rows of a column follow each other in ascending z: the row of a cell is the column's first row plus
the number of bits below.

Unsigned indices where it counts: a signed one is first looked at, whether it counts from the end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.ops.compiled import compiled, inlined

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

MAX_HEIGHT = 61
"""Cells along z that a mask holds: an empty bit below, one above and one for windows that begin above."""


@inlined
def count_bits(mask: np.uint64) -> np.int64:
    """Number of set bits; compilers turn this into one instruction."""
    mask = mask - ((mask >> np.uint64(1)) & np.uint64(0x5555555555555555))
    mask = (mask & np.uint64(0x3333333333333333)) + ((mask >> np.uint64(2)) & np.uint64(0x3333333333333333))
    mask = (mask + (mask >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((mask * np.uint64(0x0101010101010101)) >> np.uint64(56))


@inlined
def bits_below(mask: np.uint64, bit: np.int64) -> np.int64:
    return count_bits(mask & ((np.uint64(1) << np.uint64(bit)) - np.uint64(1)))


@compiled("void(int64[::1], int64, uint64[:, ::1], int32[:, ::1], int32[:, ::1])")
def enter_keys(keys_n: I64, height: int, masks: U64, firsts: I32, cells_3n: I32) -> None:
    """Marks the cells of ascending linear keys in a grid of `height` cells along z, and writes their coordinates."""
    for row in range(len(keys_n)):
        xy, z = divmod(keys_n[row], height)
        x, y = divmod(xy, masks.shape[1] - 2)
        if masks[x + 1, y + 1] == 0:
            firsts[x + 1, y + 1] = row
        masks[x + 1, y + 1] |= np.uint64(1) << np.uint64(z + 1)
        cells_3n[0, row], cells_3n[1, row], cells_3n[2, row] = x, y, z


@compiled("void(int32[:, ::1], uint64[:, ::1])")
def wipe(cells_3n: I32, masks: U64) -> None:
    """Empties the columns of these cells."""
    for row in range(cells_3n.shape[1]):
        masks[cells_3n[0, row] + 1, cells_3n[1, row] + 1] = 0


@inlined
def lowest_bit(mask: np.uint64) -> np.int64:
    """Number of the lowest set bit."""
    return count_bits((mask - np.uint64(1)) & ~mask)


@inlined
def even_bits(mask: np.uint64) -> np.uint64:
    """Bit 2 z of the mask as bit z."""
    mask &= np.uint64(0x5555555555555555)
    mask = (mask | mask >> np.uint64(1)) & np.uint64(0x3333333333333333)
    mask = (mask | mask >> np.uint64(2)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    mask = (mask | mask >> np.uint64(4)) & np.uint64(0x00FF00FF00FF00FF)
    mask = (mask | mask >> np.uint64(8)) & np.uint64(0x0000FFFF0000FFFF)
    return (mask | mask >> np.uint64(16)) & np.uint64(0x00000000FFFFFFFF)


@compiled("void(int32[:, ::1], uint64[:, ::1], int64[:, ::1], uint64[:, ::1], int64)")
def mark_reached(cells_3n: I32, masks: U64, window_33: I64, reached: U64, height_out: int) -> None:
    """Marks the output cells whose window (rows kernel, stride, padding) covers an occupied cell.

    Strides are 1 or 2, the padding along z 0 or 1.
    """
    kernel, stride, padding = window_33
    halves = stride >> 1
    there = (np.uint64(1) << np.uint64(height_out)) - np.uint64(1)
    last_x, last_y = np.int64(-1), np.int64(-1)
    for row in range(cells_3n.shape[1]):
        x, y = np.int64(cells_3n[0, row]), np.int64(cells_3n[1, row])
        if x == last_x and y == last_y:
            continue
        last_x, last_y = x, y
        covered = np.uint64(0)
        for k in range(kernel[2]):
            covered |= masks[x + 1, y + 1] >> np.uint64(k + 1 - padding[2])
        seen = ((even_bits(covered) if stride[2] == 2 else covered) & there) << np.uint64(1)
        x_low = max(-((kernel[0] - 1 - padding[0] - x) >> halves[0]), 0)
        x_high = min((x + padding[0]) >> halves[0], reached.shape[0] - 3)
        y_low = max(-((kernel[1] - 1 - padding[1] - y) >> halves[1]), 0)
        y_high = min((y + padding[1]) >> halves[1], reached.shape[1] - 3)
        for x_out in range(x_low, x_high + 1):
            for y_out in range(y_low, y_high + 1):
                reached[x_out + 1, y_out + 1] |= seen


@compiled("int64(uint64[:, ::1], int32[:, ::1])")
def number_rows(masks: U64, firsts: I32) -> int:
    """Gives every column its first row; returns the number of rows."""
    rows = 0
    for x in range(masks.shape[0]):
        for y in range(masks.shape[1]):
            if masks[x, y] != 0:
                firsts[x, y] = rows
                rows += int(count_bits(masks[x, y]))
    return rows


@compiled("void(uint64[:, ::1], int64, int32[:, ::1])")
def list_cells(masks: U64, height: int, cells_3n: I32) -> None:
    """Coordinates of the occupied cells in ascending order."""
    row = 0
    for x in range(masks.shape[0] - 2):
        for y in range(masks.shape[1] - 2):
            mask = masks[x + 1, y + 1]
            if mask == 0:
                continue
            for z in range(height):
                if (mask >> np.uint64(z + 1)) & np.uint64(1) != 0:
                    cells_3n[0, row], cells_3n[1, row], cells_3n[2, row] = x, y, z
                    row += 1


@compiled("void(int32[:, ::1], uint64[:, ::1], int64[::1], int32[::1])")
def count_kinds(cells_3n: I32, masks: U64, counts_4: I64, kinds_n: I32) -> None:
    """Tells where the 3 x 3 x 3 neighbourhood of each row is occupied: 1 below, 2 above, 3 both, 0 neither.

    Writes the kind of every row, and how many rows are of each kind.
    """
    counts_4[:] = 0
    for row in range(cells_3n.shape[1]):
        x, y, z = np.int64(cells_3n[0, row]), np.int64(cells_3n[1, row]), np.int64(cells_3n[2, row])
        seen = np.uint64(0)
        for i in range(x, x + 3):
            for j in range(y, y + 3):
                seen |= masks[i, j] >> np.uint64(z)
        kind = np.int64(seen & np.uint64(1)) + 2 * np.int64((seen >> np.uint64(2)) & np.uint64(1))
        kinds_n[row] = kind
        counts_4[kind] += 1


@compiled("void(int32[:, ::1], int32[::1], int64[::1], int32[::1], int32[:, ::1])")
def place_rows(cells_3n: I32, kinds_n: I32, begins_5: I64, ranks_n1: I32, sorted_3n: I32) -> None:
    """Lays out rows by kind, each kind from its own begin on; inside of a kind they keep their order.

    Writes the place of every row (and that of "none", behind the last kind) and the cells in the new order.
    """
    rows = cells_3n.shape[1]
    places = begins_5.copy()
    for row in range(rows):
        place = places[kinds_n[row]]
        places[kinds_n[row]] += 1
        ranks_n1[row] = place
        for axis in range(3):
            sorted_3n[axis, place] = cells_3n[axis, row]
    ranks_n1[rows] = begins_5[4]


_GRID = "Tuple((uint64[:, ::1], int32[:, ::1], int32[::1]))"


@compiled(f"void(int32[:, ::1], int32[::1], int64[:, ::1], {_GRID}, int32[:, ::1])")
def fill_reached(cells_3n: I32, ranks_n1: I32, window_33: I64, outputs: tuple[U64, I32, I32], table_mk: I32) -> None:
    """For each output cell and window offset (z fastest) the place of the occupied cell there, or that of "none".

    As `fill_table`, from the other end: every occupied cell enters itself into the outputs that see it. That is less
    work where most windows are nearly empty. `outputs` are the masks, first rows and places of the output cells;
    strides are 1 or 2.
    """
    masks, firsts, ranks_m1 = outputs
    kernel, stride, padding = window_33
    halves = stride >> 1
    table_mk[:] = ranks_n1[len(ranks_n1) - 1]
    for row in range(cells_3n.shape[1]):
        x, y, z = cells_3n[0, row] + padding[0], cells_3n[1, row] + padding[1], cells_3n[2, row] + padding[2]
        z_first = max((z - kernel[2] + stride[2]) >> halves[2], 0)
        for x_out in range(max((x - kernel[0] + stride[0]) >> halves[0], 0), (x >> halves[0]) + 1):
            for y_out in range(max((y - kernel[1] + stride[1]) >> halves[1], 0), (y >> halves[1]) + 1):
                mask = masks[x_out + 1, y_out + 1]
                offset = ((x - x_out * stride[0]) * kernel[1] + y - y_out * stride[1]) * kernel[2]
                for z_out in range(z_first, (z >> halves[2]) + 1):
                    bit = z_out + 1
                    if mask >> np.uint64(bit) & np.uint64(1) != 0:
                        output = ranks_m1[firsts[x_out + 1, y_out + 1] + bits_below(mask, np.int64(bit))]
                        table_mk[output, offset + z - z_out * stride[2]] = ranks_n1[row]


@compiled("void(uint64[:, ::1], int32[:, ::1], int32[::1], int64[:, ::1], int32[:, :], int32[:, ::1])")
def fill_table(masks: U64, firsts: I32, ranks_n1: I32, window_33: I64, outputs_3m: I32, table_mk: I32) -> None:
    """For each output cell and window offset (z fastest) the place of the occupied cell there, or that of "none".

    Windows have 1 to 3 cells along z.
    """
    kernel, stride, padding = window_33
    none, one = np.uint64(len(ranks_n1) - 1), np.uint64(1)
    flat_masks, flat_firsts, width = masks.reshape(-1), firsts.reshape(-1), masks.shape[1]
    for output in range(np.uint64(outputs_3m.shape[1])):
        x = np.int64(outputs_3m[0, output]) * stride[0] - padding[0] + 1
        y = np.int64(outputs_3m[1, output]) * stride[1] - padding[1] + 1
        bit = np.uint64(outputs_3m[2, output] * stride[2] - padding[2] + 1)
        entries, entry = table_mk[output], np.uint64(0)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                column = np.uint64((x + i) * width + y + j)
                above = flat_masks[column] >> bit
                row = np.uint64(flat_firsts[column]) + np.uint64(bits_below(flat_masks[column], np.int64(bit))) - none
                # Without a branch for what is there, which would be mispredicted every other time.
                there = above & one
                entries[entry] = ranks_n1[none + row * there]
                if kernel[2] > 1:
                    row += there
                    there = above >> one & one
                    entries[entry + one] = ranks_n1[none + row * there]
                if kernel[2] > 2:
                    row += there
                    there = above >> np.uint64(2) & one
                    entries[entry + np.uint64(2)] = ranks_n1[none + row * there]
                entry += np.uint64(kernel[2])
