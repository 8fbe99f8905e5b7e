"""How many rows the tables of a frame get: as many as they need, or more, so that one shape fits many frames.

An engine that was captured as a CUDA graph runs for one shape only. Rows beyond those of the frame name nothing but
"none" and are named by no table, so that whatever a graph computes for them reaches no cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

Segments = tuple[int, int, int, int]
"""Rows of a level's four segments, in the order of `sparse_tables.SEGMENTS`."""


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Rows of one frame's tables: of each level by segment, and of the encoder's output.

    Rooms are told in the same way: how many rows each segment gets, at least as many as it has.
    """

    levels: tuple[Segments, ...]
    out: int

    @property
    def seen(self) -> bool:
        """Whether any voxel reaches the output; else every cell of the bird's-eye view is empty."""
        return self.out > 0 and all(map(sum, self.levels))

    def least(self) -> RowCounts:
        """The smallest rooms: a segment without cells has one row, because engines are never fed empty tensors.

        Without any cell there are no rows.
        """
        levels = tuple(cast(Segments, tuple(max(n, min(sum(level), 1)) for n in level)) for level in self.levels)
        return RowCounts(levels=levels, out=self.out)


class Padding(Protocol):
    """Decides how many rows each table gets."""

    def rows(self, counts: RowCounts) -> RowCounts:
        """Rooms of the sparse encoder's tables for a frame with these rows."""
        ...

    def size(self, table: str, rows: int) -> int:
        """Room of another graph input: runs of `pool_depth`, rows of `pool_sum_1` ..., `points`, `pillar_table`."""
        ...


class Unpadded:
    """As many rows as there are, and one where an engine would be fed an empty tensor."""

    def rows(self, counts: RowCounts) -> RowCounts:
        """The smallest rooms."""
        return counts.least()

    def size(self, table: str, rows: int) -> int:
        """The rows themselves."""
        del table
        return rows
