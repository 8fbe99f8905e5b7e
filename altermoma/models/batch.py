"""Frames side by side: graph inputs of several frames joined into one set of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altermoma.geometry import Geometry
from altermoma.ops.sparse_tables import segment_names

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """Graph inputs by name; images and depth are [B * V, ...], rows of all frames are concatenated."""

    tensors: Mapping[str, Tensor]
    size: int

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, device: torch.device | str) -> FrameBatch:
        """The same on a device; a GPU need not be waited for while it is copied."""
        return FrameBatch(tensors={k: v.to(device, non_blocking=True) for k, v in self.tensors.items()}, size=self.size)

    def pinned(self, device: torch.device) -> FrameBatch:
        """The same in memory that this GPU reads by itself."""
        # Each thread has a current GPU of its own, at first number 0, where memory would be taken as well.
        with torch.cuda.device(device):
            return FrameBatch(tensors={k: v.pin_memory() for k, v in self.tensors.items()}, size=self.size)


def collate(frames: Sequence[Arrays], geometry: Geometry) -> FrameBatch:
    """Joins frames. Table entries are shifted to the joined rows; the zero row stays the one behind the last."""
    joined = _joined_pooling(frames, geometry) if "pool_depth" in frames[0] else {}
    joined |= _joined_pillars(frames) if geometry.lidar == "pillars" else _joined_sparse(frames, geometry)
    rest = {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0] if name not in joined}
    joined |= rest
    return FrameBatch(tensors={name: torch.from_numpy(joined[name]) for name in frames[0]}, size=len(frames))


def _shifted(tables: Sequence[NDArray[Any]], sizes: Sequence[int]) -> list[NDArray[np.int32]]:
    total = sum(sizes)
    return [
        np.where(table == size, total, table + offset).astype(np.int32)
        for table, size, offset in zip(tables, sizes, np.cumsum([0, *sizes]), strict=False)
    ]


def _joined_pooling(frames: Sequence[Arrays], geometry: Geometry) -> dict[str, NDArray[Any]]:
    """The pooling tables, whose entries count runs and then the rows of every earlier table of sums."""
    depths = [frame["pool_depth"] for frame in frames]
    entries = geometry.image.cameras * math.prod(geometry.image.feature_hw) * geometry.depth_count
    runs = max(depth.shape[1] for depth in depths)
    padded = [np.pad(depth, ((0, 0), (0, runs - depth.shape[1]), (0, 0)), constant_values=entries) for depth in depths]
    joined: dict[str, NDArray[Any]] = {"pool_depth": np.concatenate(_shifted(padded, [entries] * len(frames)))}
    # For each frame where its rows lie among the joined ones.
    places = [
        (number * len(depth) + np.arange(len(depth)))[:, None] * runs + np.arange(depth.shape[1])
        for number, depth in enumerate(depths)
    ]
    rows_of = [place.ravel() for place in places]
    total = sum(len(depth) for depth in depths) * runs
    for level in range(1, len(geometry.fan_in) + 1):
        tables = [frame[f"pool_sum_{level}"] for frame in frames]
        joined[f"pool_sum_{level}"] = np.concatenate(
            [np.append(rows, total)[table] for rows, table in zip(rows_of, tables, strict=True)]
        ).astype(np.int32)
        first = total + np.cumsum([0, *(len(table) for table in tables)])
        rows_of = [
            np.append(rows, np.arange(start, start + len(table)))
            for rows, start, table in zip(rows_of, first, tables, strict=False)
        ]
        total = int(first[-1])
    return joined


def _joined_pillars(frames: Sequence[Arrays]) -> dict[str, Array]:
    """The tables of the pillar encoder, whose entries count points and pillars."""
    sources = {"pillar_table": "points", "point_pillar": "pillar_table", "bev_table": "pillar_table"}
    return {
        name: np.concatenate(_shifted([frame[name] for frame in frames], [len(frame[source]) for frame in frames]))
        for name, source in sources.items()
    }


def _joined_sparse(frames: Sequence[Arrays], geometry: Geometry) -> dict[str, Array]:
    """Voxels and tables of the sparse encoder.

    The rows of a level come by segment, those of all frames in each: the joined rows are segmented as one frame's are.
    """
    levels = geometry.lidar_levels
    joined: dict[str, Array] = {}
    for level in range(levels + 1):
        subm = segment_names(f"subm_table_{level}")
        counts = [[len(frame[name]) for name in subm] for frame in frames]
        places = _places(counts)
        readers = [*subm, *(segment_names(f"down_table_{level}") if level < levels else ("out_table",))]
        joined |= {name: _mapped(frames, name, places) for name in readers}
        if level == 0:
            voxels = np.concatenate([frame["voxels"] for frame in frames])
            joined["voxels"] = np.empty_like(voxels)
            joined["voxels"][np.concatenate([place[:-1] for place in places])] = voxels
    joined["bev_table"] = _mapped(frames, "bev_table", _places([[len(frame["out_table"])] for frame in frames]))
    return joined


def _places(counts_fs: Sequence[Sequence[int]]) -> list[NDArray[np.int32]]:
    """For each frame the joined row of each of its rows and of its "none", given its rows per segment."""
    counts = np.asarray(counts_fs)
    starts = (np.cumsum(counts.T).reshape(counts.T.shape) - counts.T).T
    within = [np.concatenate([np.arange(count) for count in frame]) for frame in counts]
    rows = [np.repeat(start, count) + local for start, count, local in zip(starts, counts, within, strict=True)]
    return [np.append(row, counts.sum()).astype(np.int32) for row in rows]


def _mapped(frames: Sequence[Arrays], name: str, places: Sequence[NDArray[np.int32]]) -> Array:
    return np.concatenate([place[frame[name]] for frame, place in zip(frames, places, strict=True)])
