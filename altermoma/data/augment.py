"""Augmentation of the LiDAR frame: flips, rotation about z, one scale; one matrix for points, boxes and cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import RecipeError
from altermoma.frames import Boxes


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How far frames are moved, as in BEVFusion's training (without the shift).

    Attributes:
        flip_x, flip_y: probability that the sign of x, of y, is changed.
        rotation: largest turn about z, radians, either way.
        scale: smallest and largest factor on all lengths.
    """

    flip_x: float = 0.5
    flip_y: float = 0.5
    rotation: float = 0.3925
    scale: tuple[float, float] = (0.95, 1.05)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise RecipeError(f"augmentation scale {self.scale}", expected="0 < smallest <= largest")

    def matrix(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random `augmented_from_lidar` [4, 4]: rotation after flips, times the scale."""
        flip_x, flip_y = rng.random(2) < (self.flip_x, self.flip_y)
        angle = rng.uniform(-self.rotation, self.rotation)
        scale = rng.uniform(*self.scale)
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        result = np.eye(4)
        result[:3, :3] = scale * turn @ np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])
        return result


def move_boxes(boxes: Boxes, lidar_aug_44: NDArray[np.float64]) -> Boxes:
    """Boxes with moved centre and heading, scaled size and velocity. Labels and scores are shared, not copied."""
    linear_33 = lidar_aug_44[:3, :3]
    scale = float(np.linalg.norm(linear_33[0]))
    old, new = boxes.geometry_m9, boxes.geometry_m9.copy()
    new[:, :3] = old[:, :3] @ linear_33.T + lidar_aug_44[:3, 3]
    new[:, 3:6] = old[:, 3:6] * scale
    heading_m2 = np.stack([np.cos(old[:, 6]), np.sin(old[:, 6])], axis=1) @ linear_33[:2, :2].T
    new[:, 6] = np.arctan2(heading_m2[:, 1], heading_m2[:, 0])
    new[:, 7:9] = old[:, 7:9] @ linear_33[:2, :2].T
    return Boxes(geometry_m9=new, labels_m=boxes.labels_m, scores_m=boxes.scores_m)
