"""Bucket sizes: table shapes shared by many frames, so that engines can be captured as CUDA graphs once per shape.

A bucket is made from the first frame that fits none: its rows and an eighth more, per segment, within what the engine
was built for. So it has the proportions of the sensor that feeds it (a single sweep lies mostly in other segments than
ten). A frame takes the smallest bucket that holds it without wasting more than half of its rows. At most `MOST` are
kept; the one that was not used for the longest time goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from altermoma.deploy.manifest import StageRecord
from altermoma.errors import BundleError
from altermoma.ops.padding import RowCounts, Segments
from altermoma.ops.sparse_tables import segment_names

MOST = 4
MARGIN = 1 / 8
STEP = 64
"""Rooms are multiples of this, where the largest size allows it."""

WASTE = 1.5
"""A bucket with more rows than this times those of a frame is too large for it; `STEP` rows per segment are free."""

POOL_STEPS = {"pool_depth": 16}
"""Rounding of the pooling tables, so that a calibration that moves a little keeps their shape; others by `STEP`."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest sizes that the engines take.

    Attributes:
        rows: of each segment and of the encoder's output; None for pillars.
        finest: rows of the finest level together; None for pillars.
        sizes: other graph inputs whose size changes, by name.
    """

    rows: RowCounts | None
    finest: int
    sizes: Mapping[str, int]

    @classmethod
    def of_stages(cls, stages: Mapping[str, StageRecord], levels: int, *, pillars: bool) -> Limits:
        """Reads them from the contracts of the stages.

        Args:
            stages: of one precision, by name.
            levels: of the sparse encoder, the finest included.
            pillars: whether the LiDAR branch is fed with pillars.

        Raises:
            BundleError: a table that the runtime needs is no input of any stage.
        """
        largest = {
            spec.name: int(record.axes[axis].max)
            for record in stages.values()
            for spec in record.inputs
            for axis in spec.shape
            if isinstance(axis, str)
        }
        try:
            if pillars:
                return cls(rows=None, finest=0, sizes=largest)
            found = tuple(tuple(largest[n] for n in segment_names(f"subm_table_{level}")) for level in range(levels))
            rows = RowCounts(levels=cast(tuple[Segments, ...], found), out=largest["out_table"])
            return cls(rows=rows, finest=largest["voxels"], sizes=largest)
        except KeyError as error:
            raise BundleError(
                f"no stage has an input {error.args[0]} of changing size",
                expected="the tables of altermoma.ops.sparse_tables",
                remedy="export again with a stage contract of this version",
            ) from error


class Buckets:
    """Rooms for frames; implements `altermoma.ops.padding.Padding`.

    Attributes:
        used: rooms of the last frame that was asked for.
        made: buckets made so far; more than a few mean that the frames differ too much to be captured.
    """

    def __init__(self, limits: Limits, most: int = MOST) -> None:
        self.used: RowCounts | None = None
        self.made = 0
        self._limits, self._most = limits, most
        self._known: list[RowCounts] = []

    @property
    def known(self) -> tuple[RowCounts, ...]:
        """The buckets that are kept, the one used last at the end."""
        return tuple(self._known)

    def rows(self, counts: RowCounts) -> RowCounts:
        """The bucket of a frame; one without voxels has none, and gets its own sizes."""
        self.used = None
        if not counts.seen or self._limits.rows is None:
            return counts.least()
        least = counts.least()
        fitting = [rooms for rooms in self._known if _holds(rooms, least)]
        rooms = min(fitting, key=_total, default=None)
        if rooms is None or _total(rooms) > WASTE * _total(least) + STEP * 4 * len(least.levels):
            rooms = self._make(least)
        else:
            self._known.remove(rooms)
        self._known.append(rooms)
        del self._known[: -self._most]
        self.used = rooms
        return rooms

    def size(self, table: str, rows: int) -> int:
        """Rounded up, within the largest size."""
        step = POOL_STEPS.get(table, STEP)
        room = rows if table.startswith("pool_") else rows + int(rows * MARGIN)
        return max(rows, min(-(-room // step) * step, self._limits.sizes.get(table, rows)))

    def _make(self, least: RowCounts) -> RowCounts:
        self.made += 1
        most = cast(RowCounts, self._limits.rows)
        levels = [
            _grown(level, largest, self._limits.finest if number == 0 else sum(largest))
            for number, (level, largest) in enumerate(zip(least.levels, most.levels, strict=True))
        ]
        out = max(least.out, min(_rounded(least.out), most.out))
        return RowCounts(levels=tuple(levels), out=out)


def _rounded(rows: int) -> int:
    return -(-int(rows * (1 + MARGIN)) // STEP) * STEP


def _grown(level: Segments, largest: Segments, together: int) -> Segments:
    """Each segment with its margin; where all of them would be too many, what is left is shared out alike."""
    rooms = [max(rows, min(_rounded(rows), most)) for rows, most in zip(level, largest, strict=True)]
    if sum(rooms) > together:
        spare = max(together - sum(level), 0) // len(level)
        rooms = [max(rows, min(rows + spare, most)) for rows, most in zip(level, largest, strict=True)]
    return cast(Segments, tuple(rooms))


def _holds(rooms: RowCounts, least: RowCounts) -> bool:
    pairs = [
        pair for room, level in zip(rooms.levels, least.levels, strict=True) for pair in zip(room, level, strict=True)
    ]
    return rooms.out >= least.out and all(room >= rows for room, rows in pairs)


def _total(rooms: RowCounts) -> int:
    return sum(map(sum, rooms.levels)) + rooms.out
