"""A 32-beam spinning LiDAR: ray-cast against cuboids and ground, with noise, dropouts and material brightness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.data.synth.mounting import LIDAR
from altermoma.data.synth.road import SURFACE_INTENSITY
from altermoma.data.synth.slabs import intersect, local_origin, to_local
from altermoma.data.synth.world import GROUND_CELL, Cuboids, SceneWorld

BEAMS = 32
AZIMUTHS = 600
MAX_RANGE = 70.0
RANGE_SIGMA = 0.02
_GROUND_OWNER = -1

_elevation = np.deg2rad(np.linspace(-30.0, 10.0, BEAMS))
_azimuth = np.linspace(-np.pi, np.pi, AZIMUTHS, endpoint=False)


def _directions() -> NDArray[np.float32]:
    """[3, beams, azimuths] unit rays in the ego frame."""
    flat = np.stack(
        [
            np.cos(_elevation)[:, None] * np.cos(_azimuth),
            np.cos(_elevation)[:, None] * np.sin(_azimuth),
            np.repeat(np.sin(_elevation)[:, None], AZIMUTHS, axis=1),
        ]
    )
    # The scanner's axis is tilted as the sensor is; undo its quarter turn so that columns follow ego azimuth roughly.
    rotation = LIDAR.ego_from_sensor()
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return np.tensordot(rotation @ turn, flat, axes=1).astype(np.float32)


RAYS_3BA = _directions()
_COLUMN_STEP = 2 * np.pi / AZIMUTHS
_COLUMN_ZERO = float(np.arctan2(RAYS_3BA[1, BEAMS // 2, 0], RAYS_3BA[0, BEAMS // 2, 0]))


def _columns(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Azimuth columns that a footprint with corners x, y [4] (relative to the sensor) can touch."""
    angle = np.arctan2(y, x)
    middle = np.arctan2(np.sin(angle).sum(), np.cos(angle).sum())
    offset = (angle - middle + np.pi) % (2 * np.pi) - np.pi
    first = np.floor((middle + offset.min() - _COLUMN_ZERO) / _COLUMN_STEP) - 2
    last = np.ceil((middle + offset.max() - _COLUMN_ZERO) / _COLUMN_STEP) + 2
    return np.arange(int(first), int(last) + 1) % AZIMUTHS


def _cast(
    cuboids: Cuboids, world: SceneWorld, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Range [beams, azimuths] (inf for none) and owner of every ray (-1: ground)."""
    ox, oy, oz = LIDAR.translation
    with np.errstate(divide="ignore"):
        distance = np.where(RAYS_3BA[2] < -1e-3, -np.float32(oz) / RAYS_3BA[2], np.float32(np.inf)).astype(np.float32)
    owner = np.full(distance.shape, _GROUND_OWNER, np.int64)
    signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)], float)
    for i in range(len(cuboids.part_p)):
        (cx, cy, cz), half, yaw = cuboids.centre_p3[i], cuboids.half_p3[i], float(cuboids.yaw_p[i])
        px, py = signs[:, 0] * half[0], signs[:, 1] * half[1]
        corner_x = cx - ox + np.cos(yaw) * px - np.sin(yaw) * py
        corner_y = cy - oy + np.sin(yaw) * px + np.cos(yaw) * py
        columns = _columns(corner_x, corner_y)
        rays = RAYS_3BA[:, :, columns]
        dx, dy = to_local(yaw, rays[0], rays[1])
        entry, _, hit = intersect(local_origin(yaw, (ox - cx, oy - cy, oz - cz)), (dx, dy, rays[2]), half)
        hit &= entry < distance[:, columns]
        density = world.part_density_p[cuboids.part_p[i]]
        if density < 1.0:
            hit &= rng.random(hit.shape) < density
        if not hit.any():
            continue
        distance[:, columns] = np.where(hit, entry, distance[:, columns])
        owner[:, columns] = np.where(hit, cuboids.owner_p[i], owner[:, columns])
    return distance, owner


def _intensity(
    world: SceneWorld, time: float, points_n3: NDArray[np.float64], owner_n: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Brightness 0-255 by object or ground surface. points_n3: ego frame."""
    ex, ey, yaw = world.ego_pose(time)
    x = ex + np.cos(yaw) * points_n3[:, 0] - np.sin(yaw) * points_n3[:, 1]
    y = ey + np.sin(yaw) * points_n3[:, 0] + np.cos(yaw) * points_n3[:, 1]
    rows, columns = world.surface_yx.shape
    ix = np.clip((x / GROUND_CELL).astype(np.int64), 0, columns - 1)
    iy = np.clip((y / GROUND_CELL).astype(np.int64), 0, rows - 1)
    ground = SURFACE_INTENSITY[world.surface_yx[iy, ix]]
    base = np.where(owner_n >= 0, world.intensity_m[owner_n], ground)
    bright = base * rng.normal(1.0, 0.18, len(base)) + rng.normal(0.0, 1.5, len(base))
    return np.asarray(np.clip(np.round(bright), 0, 255), np.float64)


def scan(world: SceneWorld, time: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """One revolution at `time` seconds.

    Returns:
        float32 [N, 5]: x, y, z (m, LiDAR frame), intensity (0-255), ring (0 = lowest beam).
    """
    distance, owner = _cast(world.cuboids(time), world, rng)
    lost = rng.random(distance.shape) < 0.04 + 0.2 * np.clip(distance / MAX_RANGE, 0.0, 1.0)
    beam, column = np.nonzero((distance < MAX_RANGE) & ~lost)
    owner_n = owner[beam, column]
    measured = distance[beam, column] + rng.normal(0.0, RANGE_SIGMA, len(beam))
    offset_n3 = RAYS_3BA[:, beam, column].T.astype(np.float64) * measured[:, None]
    intensity = _intensity(world, time, offset_n3 + LIDAR.translation, owner_n, rng)
    sensor_n3 = offset_n3 @ LIDAR.ego_from_sensor()
    return np.column_stack([sensor_n3, intensity, beam]).astype(np.float32)
