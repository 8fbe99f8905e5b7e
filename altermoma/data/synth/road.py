"""A road of constant curvature.

Road coordinates s, t: metres along the middle of the road and to its left. Scene frame x, y: also the global frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LANE_CENTRE = 1.9
CYCLE_CENTRE = 4.65
PARKING_CENTRE = 7.0
KERB = 8.6
WALK_NEAR, WALK_FAR = 9.85, 11.75
PAVEMENT_END = 12.5
APRON_END = 22.5
BUILDING_START = 24.0


@dataclass(frozen=True, kw_only=True)
class Road:
    """Attributes:
    heading: direction at s = 0, rad.
    curvature: 1/m, never 0.
    origin: x, y of (s, t) = (0, 0), metres.
    """

    heading: float
    curvature: float
    origin: tuple[float, float]

    def position(self, s: Array, t: Array) -> tuple[Array, Array]:
        """Scene x, y of road coordinates."""
        radius = 1.0 / self.curvature
        angle = self.heading + self.curvature * s
        x0, y0 = self.origin
        x = x0 - radius * np.sin(self.heading) + (radius - t) * np.sin(angle)
        y = y0 + radius * np.cos(self.heading) - (radius - t) * np.cos(angle)
        return x, y

    def direction(self, s: Array) -> Array:
        """Heading of the road at s, rad."""
        return self.heading + self.curvature * s

    def coordinates(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Road coordinates of scene points: the inverse of `position`."""
        radius = 1.0 / self.curvature
        dx = x - self.origin[0] + radius * np.sin(self.heading)
        dy = y - self.origin[1] - radius * np.cos(self.heading)
        sign = np.sign(radius)
        angle = np.arctan2(sign * dx, -sign * dy)
        turned = (angle - self.heading + np.pi) % (2 * np.pi) - np.pi
        return turned * radius, radius - sign * np.hypot(dx, dy)


# Surfaces of the ground, by code: name of the surface is the constant's name.
GRASS, ASPHALT, MARKING, CYCLE_PATH, PARKING, PAVEMENT, APRON, DECAL_ORANGE, DECAL_WHITE = range(9)
SURFACE_COLOURS = np.array(
    [
        (104, 132, 76), (84, 85, 90), (226, 226, 220), (112, 92, 90), (98, 98, 102), (158, 156, 150),
        (128, 126, 120), (255, 112, 15), (244, 244, 244),
    ],
    np.float32,
)  # fmt: skip
SURFACE_INTENSITY = np.array([22.0, 8.0, 40.0, 12.0, 9.0, 16.0, 14.0, 14.0, 14.0], np.float32)


def _dashes(s: Array, period: float, length: float) -> NDArray[np.bool_]:
    return (s % period) < length


def surfaces(s: Array, t: Array, decals: Array) -> NDArray[np.uint8]:
    """Surface codes at road coordinates; `decals` [D, 2] are the (s, t) of painted cones."""
    side = np.abs(t)
    code = np.full(s.shape, GRASS, np.uint8)
    code[side < APRON_END] = APRON
    code[side < PAVEMENT_END] = PAVEMENT
    code[side < KERB] = PARKING
    code[side < 5.5] = CYCLE_PATH
    code[side < 3.85] = ASPHALT
    code[(side < 0.1) & _dashes(s, 6.0, 3.0)] = MARKING
    code[np.abs(side - 3.85) < 0.1] = MARKING
    code[(np.abs(side - 5.5) < 0.09) & _dashes(s, 2.0, 1.0)] = MARKING
    code[(np.abs(side - 7.0) < 1.5) & (s % 12.0 < 0.15)] = MARKING
    code[(np.abs(side - 3.0) < 6.0) & (side < 5.5) & (np.abs(s % 70.0 - 55.0) < 1.5) & (t % 1.0 < 0.5)] = MARKING
    for ds, dt in decals:
        inside = (np.abs(s - ds) < 0.9) & (np.abs(t - dt) < 0.3)
        code[inside] = DECAL_ORANGE
        code[inside & (np.abs(s - ds) < 0.25)] = DECAL_WHITE
    return code
