"""Compiled loops that resize 8-bit pictures with Pillow's weights and Pillow's rounding, several rows at a time.

Along a row every pixel is summed from other pixels with other weights, which leaves nothing to do at once. So `LANES`
rows are turned into columns first: one weight then multiplies the pixels of all of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.ops.compiled import compiled, inlined
from altermoma.ops.resample import PRECISION_BITS

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
Word = np.uint64
Words = tuple[Word, Word, Word, Word, Word, Word, Word, Word]

LANES = 64
"""Rows that are summed together."""
TAPS = 4
"""Weights per pass; every pixel must have a multiple, of which the last may be zero."""
BYTES = 8
"""Of a word."""
_HALF = 1 << (PRECISION_BITS - 1)


@inlined
def swapped(first: Word, second: Word, shift: int, low: Word) -> tuple[Word, Word]:
    """Exchanges the high bytes of the first word and the low bytes of the second."""
    moved = ((first >> np.uint64(shift)) ^ second) & low
    return first ^ (moved << np.uint64(shift)), second ^ moved


@inlined
def turned(words: Words) -> Words:
    """8 x 8 bytes transposed: byte i of word j becomes byte j of word i."""
    a, b, c, d, e, f, g, h = words
    fours, twos, ones = np.uint64(0x00000000FFFFFFFF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00FF00FF00FF00FF)
    a, e = swapped(a, e, 32, fours)
    b, f = swapped(b, f, 32, fours)
    c, g = swapped(c, g, 32, fours)
    d, h = swapped(d, h, 32, fours)
    a, c = swapped(a, c, 16, twos)
    b, d = swapped(b, d, 16, twos)
    e, g = swapped(e, g, 16, twos)
    f, h = swapped(f, h, 16, twos)
    a, b = swapped(a, b, 8, ones)
    c, d = swapped(c, d, 8, ones)
    e, f = swapped(e, f, 8, ones)
    g, h = swapped(g, h, 8, ones)
    return a, b, c, d, e, f, g, h


@compiled("void(uint64[:, ::1], int64, uint64[:, ::1])")
def to_lanes(rows: U64, first: int, lanes: U64) -> None:
    """Turns `LANES` rows from `first` on into columns; those behind the last row are copies of it."""
    last = rows.shape[0] - 1
    for word in range(LANES // BYTES):
        row = first + BYTES * word
        a, b, c, d = min(row, last), min(row + 1, last), min(row + 2, last), min(row + 3, last)
        e, f, g, h = min(row + 4, last), min(row + 5, last), min(row + 6, last), min(row + 7, last)
        for x in range(rows.shape[1]):
            found = turned((
                rows[a, x], rows[b, x], rows[c, x], rows[d, x], rows[e, x], rows[f, x], rows[g, x], rows[h, x],
            ))  # fmt: skip
            y = BYTES * x
            lanes[y, word], lanes[y + 1, word], lanes[y + 2, word], lanes[y + 3, word] = found[:4]
            lanes[y + 4, word], lanes[y + 5, word], lanes[y + 6, word], lanes[y + 7, word] = found[4:]


@compiled("void(uint64[:, ::1], int64, uint64[:, ::1])")
def from_lanes(lanes: U64, first: int, rows: U64) -> None:
    """Turns columns back into `LANES` rows from `first` on."""
    for word in range(LANES // BYTES):
        row = first + BYTES * word
        for x in range(rows.shape[1]):
            y = BYTES * x
            found = turned((
                lanes[y, word], lanes[y + 1, word], lanes[y + 2, word], lanes[y + 3, word],
                lanes[y + 4, word], lanes[y + 5, word], lanes[y + 6, word], lanes[y + 7, word],
            ))  # fmt: skip
            rows[row, x], rows[row + 1, x], rows[row + 2, x], rows[row + 3, x] = found[:4]
            rows[row + 4, x], rows[row + 5, x], rows[row + 6, x], rows[row + 7, x] = found[4:]


@compiled("void(uint8[:, ::1], int32[::1], int32[:, ::1], uint8[:, ::1], int32[::1])")
def sum_columns(lanes: U8, firsts_n: I32, weights_nk: I32, sums: U8, total: I32) -> None:
    """Along the rows: RGB pixels, one below the other, to planes of the new width, one below the other.

    `total` is room for `LANES` numbers.
    """
    width = len(firsts_n)
    for n in range(width):
        for channel in range(3):
            total[:] = _HALF
            for k in range(0, weights_nk.shape[1], TAPS):
                at = (firsts_n[n] + k) * 3 + channel
                a, b, c, d = weights_nk[n, k], weights_nk[n, k + 1], weights_nk[n, k + 2], weights_nk[n, k + 3]
                for lane in range(LANES):
                    near = a * np.int32(lanes[at, lane]) + b * np.int32(lanes[at + 3, lane])
                    far = c * np.int32(lanes[at + 6, lane]) + d * np.int32(lanes[at + 9, lane])
                    total[lane] = np.int32(total[lane] + near + far)
            for lane in range(LANES):
                sums[channel * width + n, lane] = np.uint8(min(max(total[lane] >> PRECISION_BITS, 0), 255))


@compiled("void(uint8[:, ::1], int32[::1], int32[:, ::1], float32[:, ::1], float32[:, :, ::1], int32[::1])")
def sum_rows(rows: U8, firsts_n: I32, weights_nk: I32, colour_23: F32, planes_3hw: F32, total: I32) -> None:
    """Along the columns, and normalised: shift and factor per channel are `colour_23`.

    `total` is room for as many numbers as all planes are wide.
    """
    height, width = planes_3hw.shape[1:]
    for n in range(height):
        total[:] = _HALF
        for k in range(0, weights_nk.shape[1], TAPS):
            at = firsts_n[n] + k
            a, b, c, d = weights_nk[n, k], weights_nk[n, k + 1], weights_nk[n, k + 2], weights_nk[n, k + 3]
            for x in range(3 * width):
                near = a * np.int32(rows[at, x]) + b * np.int32(rows[at + 1, x])
                far = c * np.int32(rows[at + 2, x]) + d * np.int32(rows[at + 3, x])
                total[x] = np.int32(total[x] + near + far)
        for channel in range(3):
            shift, factor = colour_23[0, channel], colour_23[1, channel]
            for x in range(width):
                value = min(max(total[channel * width + x] >> PRECISION_BITS, 0), 255)
                planes_3hw[channel, n, x] = (np.float32(value) - shift) * factor
