"""Small stand-ins for the model and the data, with the same shapes and names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from altermoma.frames import Boxes
from altermoma.geometry import Geometry

GEOMETRY = Geometry()


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Fields of HeadOutputs that the loss reads."""

    dense_heatmap: Tensor
    center: Tensor
    height: Tensor
    dim: Tensor
    rot: Tensor
    vel: Tensor
    heatmap: Tensor


def random_outputs(rng: np.random.Generator, frames: int, queries: int, dtype: torch.dtype = torch.float64) -> Outputs:
    def tensor(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return torch.tensor(rng.uniform(low, high, shape), dtype=dtype)

    return Outputs(
        dense_heatmap=tensor(frames, 10, *GEOMETRY.bev_shape, low=-6, high=2),
        center=tensor(frames, 2, queries, low=0, high=80),
        height=tensor(frames, 1, queries),
        dim=tensor(frames, 3, queries, low=-0.5, high=1.7),
        rot=tensor(frames, 2, queries),
        vel=tensor(frames, 2, queries),
        heatmap=tensor(frames, 10, queries, low=-4, high=2),
    )


def random_truth(rng: np.random.Generator, boxes: int, *, unknown_velocity: bool = False) -> Boxes:
    geometry = np.concatenate(
        [
            rng.uniform(-31, 31, (boxes, 2)),
            rng.uniform(-1.5, 1.5, (boxes, 1)),
            rng.uniform(0.5, 8.0, (boxes, 3)),
            rng.uniform(-np.pi, np.pi, (boxes, 1)),
            rng.uniform(-5, 5, (boxes, 2)),
        ],
        axis=1,
    ).astype(np.float32)
    if unknown_velocity:
        geometry[::2, 7:] = np.nan
    labels = rng.integers(0, 10, boxes)
    return Boxes(geometry_m9=geometry, labels_m=labels, scores_m=np.ones(boxes, np.float32))
