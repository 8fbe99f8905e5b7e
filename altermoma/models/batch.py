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
    if name.startswith("pool_sum_"):
        level = int(name.removeprefix("pool_sum_"))
        return "pool_depth" if level == 1 else f"pool_sum_{level - 1}"
    if geometry.lidar == "pillars":
        return {"pillar_table": "points", "point_pillar": "pillar_table", "bev_table": "pillar_table"}.get(name)
    return {"bev_table": "out_table", "out_table": f"subm_table_{geometry.lidar_levels}"}.get(name)


def collate(frames: Sequence[Arrays], geometry: Geometry) -> FrameBatch:
    """Joins frames. Table entries are shifted to the joined rows; the zero row stays the one behind the last."""
    pixels = geometry.image.cameras * math.prod(geometry.image.feature_hw)
    lifted = {"pool_depth": pixels * geometry.depth_count, "pool_pixel": pixels}
    tensors = {}
    for name in frames[0]:
        arrays = [frame[name] for frame in frames]
        source = _row_source(name, geometry)
        if name in lifted:
            arrays = [_shifted(arrays, [lifted[name]] * len(frames))]
        elif source is not None:
            arrays = [_shifted(arrays, [len(frame[source]) for frame in frames])]
        tensors[name] = torch.from_numpy(np.concatenate(arrays))
    return FrameBatch(tensors=tensors, size=len(frames))


def _shifted(tables: list[NDArray[Any]], sizes: list[int]) -> NDArray[np.int32]:
    total = sum(sizes)
    joined, offset = [], 0
    for table, size in zip(tables, sizes, strict=True):
        joined.append(np.where(table == size, total, table + offset).astype(np.int32))
        offset += size
    return np.concatenate(joined)
