"""The order of channels in which 2:4 pruning keeps most magnitude: a local search over regrouped pairs of fours.

Channels that share a four compete: of each row's four entries two stay. Which channels share one is free, as a network
computes the same in any order of its channels. After Pool and Yu, "Channel Permutations for N:M Sparsity" (NeurIPS
2021): take two fours, try all 35 ways to part their eight columns, keep the best; repeat until no pair improves. Then
shake a few columns and go on, as long as the work that was granted lasts. Work is counted in evaluated fours, not in
seconds: the same order comes out whatever else the machine does.
"""

# ruff: noqa: PLW3301 - a maximum of two is one vector instruction, of three it is a branch per number.

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import PruningError
from altermoma.ops.compiled import compiled, inlined

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

FOUR = 4
WORK = 20_000_000_000
"""Fours that one search evaluates at most: about 2 s of one core."""
_PASSES = 4
"""Full surveys that the work must last for; rows are sampled where it would not."""
_LEAST_ROWS = 128
_PATIENCE = 8
"""Shakes in a row without gain that end a search."""
_TINY = 1e-6
"""Gains below this share of all magnitude are rounding."""
_PAIRS = tuple(combinations(range(2 * FOUR), 2))


def partings(units: int) -> I64:
    """Every way to part two groups' columns, int64 [P, 8]: the first four columns are one group. Row 0 parts nothing.

    Args:
        units: columns that must stay together, 1 or 2.
    """
    ids = range(2 * FOUR // units)
    rows = []
    for first in combinations(ids, FOUR // units):
        if first[0] == 0:
            order = (*first, *(i for i in ids if i not in first))
            rows.append([i * units + column for i in order for column in range(units)])
    return np.asarray(rows, np.int64)


def _as_pairs(partings_p8: I64) -> I64:
    """The same partings as numbers of the pairs of columns that make them up, int64 [P, 4]."""
    number = {pair: index for index, pair in enumerate(_PAIRS)}
    rows = [[number[way[k], way[k + 1]] for k in range(0, 2 * FOUR, 2)] for way in partings_p8.tolist()]
    return np.asarray(rows, np.int64)


@compiled("float64(float32[:, ::1], int64[::1])", reorder=True)
def kept_sum(columns_cr: F32, order_c: I64) -> np.float64:
    """What stays of the columns in this order: the two largest of each row's consecutive four, summed."""
    total = np.float64(0.0)
    for first in range(0, len(order_c), 4):
        a, b = columns_cr[order_c[first]], columns_cr[order_c[first + 1]]
        c, d = columns_cr[order_c[first + 2]], columns_cr[order_c[first + 3]]
        for begin in range(0, columns_cr.shape[1], 1024):
            part = np.float32(0.0)
            for row in range(begin, min(begin + 1024, columns_cr.shape[1])):
                high_ab, low_ab = max(a[row], b[row]), min(a[row], b[row])
                high_cd, low_cd = max(c[row], d[row]), min(c[row], d[row])
                part += max(high_ab, high_cd) + max(min(high_ab, high_cd), max(low_ab, low_cd))
            total += part
    return total


@inlined
def _compare_pairs(columns_cr: F32, eight: I64, begin: int, high_pr: F32, low_pr: F32) -> int:
    """Larger and smaller of every two of eight columns, for the block of rows from `begin` on; how many rows it has."""
    count = min(high_pr.shape[1], columns_cr.shape[1] - begin)
    pair = 0
    for first in range(8):
        a = columns_cr[eight[first], begin : begin + count]
        for second in range(first + 1, 8):
            b = columns_cr[eight[second], begin : begin + count]
            larger, smaller = high_pr[pair], low_pr[pair]
            for row in range(count):
                larger[row], smaller[row] = max(a[row], b[row]), min(a[row], b[row])
            pair += 1
    return count


@compiled(
    "void(float32[:, ::1], int64[::1], int64[:, ::1], boolean[::1], float32[:, ::1], int64[:, ::1])", reorder=True
)
def _survey(columns_cr: F32, order_c: I64, ways_p4: I64, moved_g: Flags, gains_gg: F32, best_gg: I64) -> None:
    """For every two fours of which one has moved: the best way to part their columns, and its gain.

    Larger and smaller of all 28 pairs are computed once per block of rows; a four is two pairs.
    """
    groups, rows = len(order_c) // 4, columns_cr.shape[1]
    sums, eight = np.empty(len(ways_p4), np.float32), np.empty(8, np.int64)
    high, low = np.empty((28, 128), np.float32), np.empty((28, 128), np.float32)
    for i in range(groups):
        for j in range(i + 1, groups):
            if not (moved_g[i] or moved_g[j]):
                continue
            for k in range(4):
                eight[k], eight[4 + k] = order_c[4 * i + k], order_c[4 * j + k]
            sums[:] = 0.0
            for begin in range(0, rows, 128):
                count = _compare_pairs(columns_cr, eight, begin, high, low)
                for way in range(len(ways_p4)):
                    p, q, r, s = ways_p4[way, 0], ways_p4[way, 1], ways_p4[way, 2], ways_p4[way, 3]
                    h0, l0, h1, l1 = high[p], low[p], high[q], low[q]
                    h2, l2, h3, l3 = high[r], low[r], high[s], low[s]
                    part = np.float32(0.0)
                    for row in range(count):
                        one = max(h0[row], h1[row]) + max(min(h0[row], h1[row]), max(l0[row], l1[row]))
                        other = max(h2[row], h3[row]) + max(min(h2[row], h3[row]), max(l2[row], l3[row]))
                        part += one + other
                    sums[way] += part
            found = np.argmax(sums)
            gains_gg[i, j], best_gg[i, j] = sums[found] - sums[0], found


@dataclass(frozen=True, kw_only=True)
class Found:
    """An order of channels.

    Attributes:
        order: int64 [channels], which channel comes at each place.
        before, after: share of the magnitude that 2:4 keeps, as it was and in this order.
        work: fours evaluated.
    """

    order: I64
    before: float
    after: float
    work: int


def search(columns_cr: F32, *, unit: int = 1, work: int = WORK, seed: int = 0) -> Found:
    """Searches an order of channels; never worse than the one that there is.

    Args:
        columns_cr: magnitudes, finite and not negative: a column of all its readers' rows per entry of a channel.
        unit: consecutive entries that are one channel, 1 or 2.
        work: fours to evaluate at most. It takes at least two surveys of 128 rows.
        seed: of the rows that are sampled and of the shakes.

    Raises:
        PruningError: entries that are no fours.
    """
    entries = len(columns_cr)
    if unit not in (1, 2) or entries % FOUR:
        raise PruningError(
            f"{entries} entries of {unit} per channel", expected="a multiple of 4, and 1 or 2 per channel"
        )
    whole, identity = float(columns_cr.sum(dtype=np.float64)), np.arange(entries)
    before = float(kept_sum(columns_cr, identity))
    if entries == FOUR or whole == 0.0:
        share = before / whole if whole else 1.0
        return Found(order=identity[::unit] // unit, before=share, after=share, work=0)
    rng = np.random.default_rng(seed)
    state = _Search(_sampled(columns_cr, unit, work, rng), unit, work)
    starts = [state.descend(start) for start in (identity, _dealt(columns_cr, unit))]
    order = state.shaken(max(starts, key=state.kept), rng)
    after = float(kept_sum(columns_cr, order))
    if after <= before:
        order, after = identity, before
    return Found(order=order[::unit] // unit, before=before / whole, after=after / whole, work=state.spent)


def _sampled(columns_cr: F32, unit: int, work: int, rng: np.random.Generator) -> F32:
    """All rows, or as many as the work lasts for."""
    groups, rows = len(columns_cr) // FOUR, columns_cr.shape[1]
    per_row = groups * (groups - 1) * len(partings(unit))
    limit = max(_LEAST_ROWS, work // (_PASSES * per_row))
    if limit >= rows:
        return np.ascontiguousarray(columns_cr)
    return np.ascontiguousarray(columns_cr[:, np.sort(rng.choice(rows, limit, replace=False))])


def _dealt(columns_cr: F32, unit: int) -> I64:
    """Channels dealt by size, back and forth: every four gets large and small ones."""
    sizes_u = columns_cr.reshape(-1, unit * columns_cr.shape[1]).sum(axis=1)
    groups = len(columns_cr) // FOUR
    hands = np.argsort(-sizes_u, kind="stable").reshape(FOUR // unit, groups)
    hands[1::2] = hands[1::2, ::-1]
    return _entries(hands.T.reshape(-1), unit)


def _entries(channels: I64, unit: int) -> I64:
    return (channels[:, None] * unit + np.arange(unit)).reshape(-1)


class _Search:
    """Descents over one matrix, and the work that they took."""

    def __init__(self, columns_cr: F32, unit: int, work: int) -> None:
        self._columns = columns_cr
        self._unit = unit
        self._partings = partings(unit)
        self._ways = _as_pairs(self._partings)
        self._least = _TINY * float(columns_cr.sum(dtype=np.float64))
        self._work = work
        self.spent = 0

    def kept(self, order_c: I64) -> float:
        return float(kept_sum(self._columns, order_c))

    def descend(self, order_c: I64, moved_g: Flags | None = None) -> I64:
        """The order after all regroupings that gain; of those that overlap, the largest gain goes first.

        Args:
            order_c: start.
            moved_g: fours that may have become improvable; all where left out.
        """
        order, groups = order_c.copy(), len(order_c) // FOUR
        moved = np.ones(groups, bool) if moved_g is None else moved_g
        gains, best = np.zeros((groups, groups), np.float32), np.zeros((groups, groups), np.int64)
        while moved.any():
            still = groups - int(moved.sum())
            cost = (groups * (groups - 1) - still * (still - 1)) * len(self._ways) * self._columns.shape[1]
            if self.spent and self.spent + cost > self._work:
                break
            self.spent += cost
            _survey(self._columns, order, self._ways, moved, gains, best)
            moved = self._regroup(order, gains, best)
        return order

    def _regroup(self, order: I64, gains: F32, best: I64) -> Flags:
        """Carries out the largest gains, each four once; returns the fours that moved."""
        moved = np.zeros(len(order) // FOUR, bool)
        firsts, seconds = np.nonzero(gains > self._least)
        for index in np.argsort(-gains[firsts, seconds], kind="stable"):
            i, j = firsts[index], seconds[index]
            if moved[i] or moved[j]:
                continue
            moved[[i, j]] = True
            places = np.concatenate([np.arange(FOUR) + FOUR * i, np.arange(FOUR) + FOUR * j])
            order[places] = order[places][self._partings[best[i, j]]]
        gains[moved], gains[:, moved] = 0.0, 0.0
        return moved

    def shaken(self, order: I64, rng: np.random.Generator) -> I64:
        """Leaves the valley by exchanging a few channels at random and descending again, while that pays."""
        kept, channels, failed = self.kept(order), len(order) // self._unit, 0
        while failed < _PATIENCE and self.spent < self._work:
            shuffled = order.reshape(channels, self._unit).copy()
            places = rng.choice(channels, min(6, channels), replace=False)
            shuffled[places] = shuffled[np.roll(places, 1)]
            moved = np.zeros(len(order) // FOUR, bool)
            moved[places * self._unit // FOUR] = True
            found = self.descend(shuffled.reshape(-1), moved)
            gained = self.kept(found) - kept > self._least
            failed = 0 if gained else failed + 1
            if gained:
                order, kept = found, self.kept(found)
        return order
