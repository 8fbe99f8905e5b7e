"""Five radars: a few returns per object with Doppler speed, some from scenery, written as nuScenes's binary .pcd."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.data.synth.mounting import Mount
from altermoma.data.synth.world import SceneWorld

MAX_RANGE = 60.0
HALF_VIEW = np.deg2rad(60.0)
_FIELDS: tuple[tuple[str, str], ...] = (
    ("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4"), ("vx", "<f4"),
    ("vy", "<f4"), ("vx_comp", "<f4"), ("vy_comp", "<f4"), ("is_quality_valid", "i1"), ("ambig_state", "i1"),
    ("x_rms", "i1"), ("y_rms", "i1"), ("invalid_state", "i1"), ("pdh0", "i1"), ("vx_rms", "i1"), ("vy_rms", "i1"),
)  # fmt: skip
RADAR_DTYPE = np.dtype(list(_FIELDS))


@dataclass(frozen=True, kw_only=True)
class RadarScan:
    """Attributes:
    points: structured array of RADAR_DTYPE, radar frame.
    hits_m: returns per object of the scene that lie within its footprint.
    """

    points: NDArray[np.void]
    hits_m: NDArray[np.int64]


def _draw_returns(world: SceneWorld, rng: np.random.Generator, shown: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Object index of each return; -1 for clutter."""
    big = np.sqrt(world.size_m3[:, 0] * world.size_m3[:, 2]).clip(0.5, 3.0)
    count = np.where(shown, rng.poisson(0.7 * big), 0)
    return np.concatenate([np.repeat(np.arange(len(count)), count), np.full(rng.integers(6, 14), -1)])


def scan(world: SceneWorld, mount: Mount, time: float, rng: np.random.Generator) -> RadarScan:
    """One radar measurement at `time` seconds; always holds at least one point, as the file format demands."""
    pose, (ex, ey, eyaw) = world.object_pose(time), world.ego_pose(time)
    owner = _draw_returns(world, rng, world.existing(time))
    known = owner >= 0
    size = world.size_m3[owner]
    offset = rng.uniform(-0.45, 0.45, (len(owner), 2)) * size[:, :2]
    c, s = np.cos(pose.yaw[owner]), np.sin(pose.yaw[owner])
    x = pose.x[owner] + c * offset[:, 0] - s * offset[:, 1]
    y = pose.y[owner] + s * offset[:, 0] + c * offset[:, 1]
    x = np.where(known, x, ex + rng.uniform(-50.0, 50.0, len(owner)))
    y = np.where(known, y, ey + rng.uniform(-50.0, 50.0, len(owner)))
    direction = world.road.direction(world.s_m)[owner]
    speed = np.where(known, world.speed_m[owner], 0.0)
    sensor_yaw = eyaw + float(np.arctan2(*mount.ego_from_sensor()[1::-1, 0]))
    tx, ty, _ = mount.translation
    dx = x - ex - (np.cos(eyaw) * tx - np.sin(eyaw) * ty)
    dy = y - ey - (np.sin(eyaw) * tx + np.cos(eyaw) * ty)
    px, py = _rotate(-sensor_yaw, dx, dy)
    vx, vy = _rotate(-sensor_yaw, speed * np.cos(direction), speed * np.sin(direction))
    seen = (np.hypot(px, py) < MAX_RANGE) & (np.abs(np.arctan2(py, px)) < HALF_VIEW) & (np.hypot(px, py) > 0.5)
    seen |= np.arange(len(owner)) == len(owner) - 1
    points = _records(px[seen], py[seen], (vx[seen], vy[seen]), world.ego_speed, sensor_yaw - eyaw)
    points["rcs"] = rng.normal(8.0, 5.0, len(points))
    hits = np.bincount(owner[seen & known], minlength=len(world.objects))
    return RadarScan(points=points, hits_m=hits)


def _rotate(
    angle: float, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    c, s = np.cos(angle), np.sin(angle)
    return c * x - s * y, s * x + c * y


def _records(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    velocity: tuple[NDArray[np.float64], NDArray[np.float64]],
    ego_speed: float,
    mount_yaw: float,
) -> NDArray[np.void]:
    """Only the radial speed is measured; vx, vy are relative to the ego, *_comp to the ground."""
    distance = np.maximum(np.hypot(x, y), 1e-6)
    ux, uy = x / distance, y / distance
    radial = velocity[0] * ux + velocity[1] * uy
    own = ego_speed * (np.cos(-mount_yaw) * ux + np.sin(-mount_yaw) * uy)
    points = np.zeros(len(x), RADAR_DTYPE)
    points["x"], points["y"] = x, y
    points["dyn_prop"] = np.where(np.abs(radial) > 0.2, 0, 1)
    points["id"] = np.arange(len(x))
    points["vx"], points["vy"] = (radial - own) * ux, (radial - own) * uy
    points["vx_comp"], points["vy_comp"] = radial * ux, radial * uy
    for name, value in (("is_quality_valid", 1), ("ambig_state", 3), ("x_rms", 19), ("y_rms", 19), ("pdh0", 1)):
        points[name] = value
    points["vx_rms"] = points["vy_rms"] = 16
    return points


def pcd_bytes(points: NDArray[np.void]) -> bytes:
    """nuScenes's flavour of a binary PCD file. Ends in one newline: its reader wants a byte after the last point."""
    names = [name for name, _ in _FIELDS]
    sizes = [str(RADAR_DTYPE[name].itemsize) for name in names]
    types = ["F" if RADAR_DTYPE[name].kind == "f" else "I" for name in names]
    header = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        "FIELDS " + " ".join(names),
        "SIZE " + " ".join(sizes),
        "TYPE " + " ".join(types),
        "COUNT " + " ".join("1" for _ in names),
        f"WIDTH {len(points)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(points)}",
        "DATA binary",
    ]
    return ("\n".join(header) + "\n").encode() + points.tobytes() + b"\n"
