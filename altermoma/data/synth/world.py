"""One scene as arrays that the sensors ray-cast: objects with poses over time, their cuboids, the ground."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.data.synth import road as rd
from altermoma.data.synth.catalogue import KINDS
from altermoma.data.synth.layout import LayoutMaker, Placed
from altermoma.data.synth.road import Road
from altermoma.data.synth.shapes import build_parts
from altermoma.data.synth.textures import Texture

Array = NDArray[np.float64]
ANNOTATION_RADIUS = 31.0
"""Objects are annotated while their centre is within this distance of the ego, metres."""
EXISTENCE_RADIUS = 32.5
"""Farther objects are not there at all: unlabelled ones would only be noise in training."""
KEY_PERIOD = 0.5
GROUND_CELL = 0.125
GROUND_MARGIN = 60.0


def scene_rng(seed: int, name: str, stream: str) -> np.random.Generator:
    """Randomness of one purpose in one scene, independent of all others."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), zlib.crc32(stream.encode())])


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Planar poses: x, y (m, scene frame), yaw (rad)."""

    x: Array
    y: Array
    yaw: Array


@dataclass(frozen=True, kw_only=True)
class Cuboids:
    """P cuboids at one moment, in the ego frame.

    Attributes:
        centre_p3, half_p3: metres. yaw_p: rad.
        part_p: index into the scene's parts; owner_p: index into its objects.
    """

    centre_p3: Array
    half_p3: Array
    yaw_p: Array
    part_p: NDArray[np.int64]
    owner_p: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Light and weather of a scene. sun_3: unit vector towards the sun, scene frame; tint_3 multiplies all colours."""

    sun_3: Array
    ambient: float
    tint_3: Array
    horizon_3: Array
    zenith_3: Array


class SceneWorld:
    """Everything that does not change during a scene.

    Attributes:
        objects: what was placed; the parts_* arrays describe their cuboids in the object's frame.
        surface_yx: uint8 surface codes of the ground, row = y; colour_yx3: its uint8 picture.
    """

    def __init__(self, seed: int, name: str, keyframes: int) -> None:
        rng = scene_rng(seed, name, "layout")
        self.seed, self.name, self.keyframes = seed, name, keyframes
        self.duration = (keyframes - 1) * KEY_PERIOD
        self.ego_speed = float(rng.uniform(1.0, 6.0)) if rng.random() < 0.85 else 0.0
        # Always lay out a 20-frame drive, so that a shorter world is a prefix of a longer one.
        layout_duration = max(self.duration, 19 * KEY_PERIOD)
        self.travel = self.ego_speed * layout_duration
        self.road = self._draw_road(rng)
        self.objects: list[Placed] = LayoutMaker(rng, self.travel, layout_duration).make(self.ego_speed)
        self._index_objects(scene_rng(seed, name, "shapes"))
        self.look = _draw_look(scene_rng(seed, name, "look"))
        self._paint_ground(scene_rng(seed, name, "ground"))

    def _draw_road(self, rng: np.random.Generator) -> Road:
        heading = float(rng.uniform(-np.pi, np.pi))
        curvature = float(rng.uniform(-1 / 130, 1 / 130))
        curvature = np.copysign(max(abs(curvature), 1e-5), curvature)
        trial = Road(heading=heading, curvature=curvature, origin=(0.0, 0.0))
        x, y = trial.position(np.linspace(0.0, self.travel, 50), np.zeros(50))
        low = np.array([x.min(), y.min()]) - GROUND_MARGIN
        self.extent = tuple(float(v) for v in np.array([x.max(), y.max()]) + GROUND_MARGIN - low)
        return Road(heading=heading, curvature=curvature, origin=(float(-low[0]), float(-low[1])))

    def _index_objects(self, rng: np.random.Generator) -> None:
        objects = self.objects
        self.s_m = np.array([o.s for o in objects])
        self.t_m = np.array([o.t for o in objects])
        self.yaw_m = np.array([o.yaw for o in objects])
        self.speed_m = np.array([o.speed for o in objects])
        self.size_m3 = np.array([o.size for o in objects])
        self.kind_m = [KINDS[o.kind] for o in objects]
        self.scenery_m = np.array([o.kind in ("building", "tree", "lamp") for o in objects])
        self.intensity_m = np.array([rng.uniform(*k.intensity) for k in self.kind_m])
        parts = [build_parts(kind, size, rng) for kind, size in zip(self.kind_m, self.size_m3, strict=True)]
        flat = [part for group in parts for part in group]
        self.part_owner_p = np.repeat(np.arange(len(parts)), [len(group) for group in parts])
        self.part_centre_p3 = np.array([p.centre for p in flat])
        self.part_half_p3 = np.array([p.half for p in flat])
        self.part_density_p = np.array([p.density for p in flat])
        self.textures: list[Texture] = [p.texture for p in flat]

    def _paint_ground(self, rng: np.random.Generator) -> None:
        decals = np.stack(
            [rng.uniform(-30.0, self.travel + 30.0, 12), rng.choice([-1, 1], 12) * rng.uniform(2.0, 22.0, 12)], axis=1
        )
        nx, ny = (int(np.ceil(v / GROUND_CELL)) for v in self.extent)
        y, x = np.meshgrid((np.arange(ny) + 0.5) * GROUND_CELL, (np.arange(nx) + 0.5) * GROUND_CELL, indexing="ij")
        s, t = self.road.coordinates(x, y)
        self.surface_yx = rd.surfaces(s, t, decals)
        grain = rng.normal(0.0, 1.0, (ny // 8 + 2, nx // 8 + 2)).astype(np.float32)
        patches = np.kron(grain, np.ones((8, 8), np.float32))[:ny, :nx]
        fine = rng.standard_normal((ny, nx), dtype=np.float32)
        shade = (1.0 + 0.025 * patches + 0.035 * fine) * np.float32(rng.uniform(0.92, 1.08))
        colour = rd.SURFACE_COLOURS[self.surface_yx] * shade[..., None] * self.look.tint_3.astype(np.float32)
        self.colour_yx3 = np.clip(colour, 0, 255).astype(np.uint8)

    def ego_pose(self, time: float) -> tuple[float, float, float]:
        """x, y (m), yaw (rad) of the ego in the scene frame at `time` seconds."""
        wave = 2 * np.pi / 9.0
        s, t = np.array(self.ego_speed * time), np.array(-rd.LANE_CENTRE + 0.25 * np.sin(wave * time))
        x, y = self.road.position(s, t)
        slope = np.arctan2(0.25 * wave * np.cos(wave * time), max(self.ego_speed, 3.0)) if self.ego_speed else 0.0
        if not self.ego_speed:
            x, y = self.road.position(np.array(0.0), np.array(-rd.LANE_CENTRE))
        return float(x), float(y), float(self.road.direction(s) + slope)

    def object_pose(self, time: float) -> Pose:
        """All objects in the scene frame at `time` seconds."""
        s = self.s_m + self.speed_m * time
        x, y = self.road.position(s, self.t_m)
        return Pose(x=x, y=y, yaw=self.road.direction(s) + self.yaw_m)

    def existing(self, time: float, radius: float = EXISTENCE_RADIUS) -> NDArray[np.bool_]:
        """[M] which objects are in the world: near ones, and scenery."""
        pose, (ex, ey, _) = self.object_pose(time), self.ego_pose(time)
        near: NDArray[np.bool_] = (np.hypot(pose.x - ex, pose.y - ey) <= radius) | self.scenery_m
        return near

    def cuboids(self, time: float) -> Cuboids:
        """All existing cuboids in the ego frame of `time`."""
        pose, (ex, ey, eyaw) = self.object_pose(time), self.ego_pose(time)
        part = np.flatnonzero(self.existing(time)[self.part_owner_p])
        owner = self.part_owner_p[part]
        yaw = pose.yaw[owner] - eyaw
        c, s = np.cos(eyaw), np.sin(eyaw)
        dx, dy = pose.x[owner] - ex, pose.y[owner] - ey
        local = self.part_centre_p3[part]
        centre = np.stack(
            [
                c * dx + s * dy + np.cos(yaw) * local[:, 0] - np.sin(yaw) * local[:, 1],
                -s * dx + c * dy + np.sin(yaw) * local[:, 0] + np.cos(yaw) * local[:, 1],
                local[:, 2],
            ],
            axis=1,
        )
        return Cuboids(centre_p3=centre, half_p3=self.part_half_p3[part], yaw_p=yaw, part_p=part, owner_p=owner)


def _draw_look(rng: np.random.Generator) -> Look:
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.2)
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    exposure, warmth = rng.uniform(0.85, 1.1), rng.uniform(-0.05, 0.05)
    overcast = rng.random() < 0.3
    zenith = np.array([178.0, 186.0, 196.0]) if overcast else np.array([96.0, 150.0, 214.0])
    return Look(
        sun_3=sun,
        ambient=0.8 if overcast else 0.62,
        tint_3=exposure * np.array([1.0 + warmth, 1.0, 1.0 - warmth]),
        horizon_3=np.array([206.0, 214.0, 222.0]),
        zenith_3=zenith,
    )
