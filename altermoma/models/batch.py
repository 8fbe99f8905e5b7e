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

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """Graph inputs by name; images and depth are [B * V, ...], rows of all frames are concatenated."""

    tensors: Mapping[str, Tensor]
    size: int

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def to(self, device: torch.device | str) -> FrameBatch:
        return FrameBatch(tensors={k: v.to(device) for k, v in self.tensors.items()}, size=self.size)


def _row_source(name: str, geometry: Geometry) -> str | None:
    """The graph input whose rows a table's entries count; None where the entries count no input's rows."""
    if name.startswith("subm_table_"):
        return name
    if name.startswith("down_table_"):
        return f"subm_table_{name.removeprefix('down_table_')}"
    if geometry.lidar == "pillars":
        return {"pillar_table": "points", "point_pillar": "pillar_table", "bev_table": "pillar_table"}.get(name)
    return {"bev_table": "out_table", "out_table": f"subm_table_{geometry.lidar_levels}"}.get(name)


def collate(frames: Sequence[Arrays], geometry: Geometry) -> FrameBatch:
    """Joins frames. Table entries are shifted to the joined rows; the zero row stays the one behind the last."""
    joined = _joined_pooling(frames, geometry) if "pool_depth" in frames[0] else {}
    for name in frames[0]:
        if name not in joined:
            arrays = [frame[name] for frame in frames]
            source = _row_source(name, geometry)
            joined[name] = np.concatenate(
                arrays if source is None else _shifted(arrays, [len(frame[source]) for frame in frames])
            )
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
