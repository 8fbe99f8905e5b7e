"""Ray against cuboid, the one geometric primitive of both LiDAR and cameras."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def to_local(yaw: float, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Rotates by -yaw: ego axes to the axes of a cuboid."""
    c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    return c * x + s * y, c * y - s * x


def local_origin(yaw: float, offset: tuple[float, float, float]) -> tuple[float, float, float]:
    """The ray origin in a cuboid's axes; `offset`: origin minus the cuboid's centre."""
    c, s = float(np.float32(np.cos(yaw))), float(np.float32(np.sin(yaw)))
    x, y, z = (float(v) for v in offset)
    return c * x + s * y, c * y - s * x, z


def intersect(
    origin: tuple[float, float, float], directions: tuple[Floats, Floats, Floats], half: NDArray[np.float64]
) -> tuple[Floats, NDArray[np.uint8], NDArray[np.bool_]]:
    """Entry of rays into an axis-aligned cuboid around 0.

    Args:
        origin: ray origin in the cuboid's axes, outside of it.
        directions: x, y, z components, any common shape; need not be unit vectors.
        half: [3] half extents.

    Returns:
        Ray parameter of the entry, entry axis (0-2), and whether the cuboid is hit in front of the origin.
    """
    near, far = [], []
    for o, d, h in zip(origin, directions, half, strict=True):
        inverse = 1.0 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
        middle = np.float32(-o) * inverse
        reach = np.float32(h) * np.abs(inverse)
        near.append(middle - reach)
        far.append(middle + reach)
    side = near[1] > near[0]
    entry = np.where(side, near[1], near[0])
    top = near[2] > entry
    entry = np.where(top, near[2], entry)
    leave = np.minimum(np.minimum(far[0], far[1]), far[2])
    axis = side.astype(np.uint8)
    axis[top] = 2
    return entry, axis, (entry < leave) & (entry > 0.02)
