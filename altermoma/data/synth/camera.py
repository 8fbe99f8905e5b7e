"""Renders one camera image: sky, ground with haze and shadows, textured cuboids with a depth buffer, sensor noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from altermoma.data.synth.mounting import IMAGE_HEIGHT, IMAGE_WIDTH, Mount
from altermoma.data.synth.slabs import intersect, local_origin, to_local
from altermoma.data.synth.textures import SIDE
from altermoma.data.synth.world import GROUND_CELL, Cuboids, SceneWorld

NEAR = 0.15
HAZE_START, HAZE_END = 30.0, 110.0
SHADOW = np.float32(0.55)
_SIGNS = np.array([[(i >> k & 1) * 2 - 1 for k in range(3)] for i in range(8)], float)
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1])
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class View:
    """What is constant of a camera. Rays have unit depth, so that a ray parameter is a depth along the optical axis.

    Attributes:
        ray_3hw: float32, ego frame. sky_hw: how far up the sky, 0 at the horizon to 1.
        ground_index: flat indices of the pixels that see the ground; ground_x, ground_y: where, ego frame, metres;
            ground_depth: metres; haze: share of the horizon's colour.
    """

    mount: Mount
    ray_3hw: Floats
    sky_hw: Floats
    ground_index: NDArray[np.int64]
    ground_x: Floats
    ground_y: Floats
    ground_depth: Floats
    haze: Floats


@lru_cache(maxsize=8)
def view_of(mount: Mount) -> View:
    """Precomputes the rays of a camera."""
    u, v = np.meshgrid(np.arange(IMAGE_WIDTH) + 0.0, np.arange(IMAGE_HEIGHT) + 0.0)
    pixel = np.stack([u, v, np.ones_like(u)]).reshape(3, -1)
    ray = mount.ego_from_sensor() @ np.linalg.inv(mount.matrix()) @ pixel
    slope = ray[2] / np.hypot(ray[0], ray[1])
    index = np.flatnonzero(slope < -0.008)
    depth = -mount.translation[2] / ray[2, index]
    x = mount.translation[0] + depth * ray[0, index]
    y = mount.translation[1] + depth * ray[1, index]
    haze = np.clip((np.hypot(x, y) - HAZE_START) / (HAZE_END - HAZE_START), 0.0, 1.0)
    return View(
        mount=mount,
        ray_3hw=ray.reshape(3, IMAGE_HEIGHT, IMAGE_WIDTH).astype(np.float32),
        sky_hw=np.clip(slope * 2.2, 0.0, 1.0).reshape(IMAGE_HEIGHT, IMAGE_WIDTH).astype(np.float32),
        ground_index=index,
        ground_x=x.astype(np.float32),
        ground_y=y.astype(np.float32),
        ground_depth=depth.astype(np.float32),
        haze=haze.astype(np.float32),
    )


def pixel_boxes(view: View, cuboids: Cuboids) -> NDArray[np.int64]:
    """[P, 4] first column, first row, end column, end row of each cuboid; empty (end <= first) where not in view."""
    corner = _SIGNS[None] * cuboids.half_p3[:, None]
    c, s = np.cos(cuboids.yaw_p)[:, None], np.sin(cuboids.yaw_p)[:, None]
    ego = np.stack(
        [c * corner[..., 0] - s * corner[..., 1], s * corner[..., 0] + c * corner[..., 1], corner[..., 2]], -1
    )
    ego += cuboids.centre_p3[:, None] - np.asarray(view.mount.translation)
    camera = ego @ view.mount.ego_from_sensor()
    a, b = camera[:, _EDGES[:, 0]], camera[:, _EDGES[:, 1]]
    crossing = (a[..., 2] < NEAR) != (b[..., 2] < NEAR)
    span = np.where(crossing, b[..., 2] - a[..., 2], 1.0)
    cut = a + (b - a) * ((NEAR - a[..., 2]) / span)[..., None]
    points = np.concatenate([camera, cut], axis=1)
    seen = np.concatenate([camera[..., 2] >= NEAR, crossing], axis=1)
    pixel = points @ view.mount.matrix().T
    uv = pixel[..., :2] / np.maximum(pixel[..., 2:], 0.5 * NEAR)
    low = np.where(seen[..., None], uv, np.inf).min(axis=1)
    high = np.where(seen[..., None], uv, -np.inf).max(axis=1)
    size = np.array([IMAGE_WIDTH, IMAGE_HEIGHT])
    first = np.clip(np.floor(low), 0, size)
    end = np.clip(np.ceil(high) + 1, 0, size)
    boxes: NDArray[np.int64] = np.concatenate([first, end], axis=1).astype(np.int64)
    return boxes


def _bilinear(picture: NDArray[np.uint8], x: Floats, y: Floats) -> Floats:
    """[N, 3] colours between the cells of a picture [rows, columns, 3]; x, y in cells, inside."""
    columns = picture.shape[1]
    flat = picture.reshape(-1, 3)
    ix, iy = x.astype(np.int32), y.astype(np.int32)
    fx, fy = (x - ix)[:, None], (y - iy)[:, None]
    cell = iy * columns + ix
    low = flat[cell] * (1 - fx) + flat[cell + 1] * fx
    high = flat[cell + columns] * (1 - fx) + flat[cell + columns + 1] * fx
    return np.asarray(low * (1 - fy) + high * fy, np.float32)


class Canvas:
    """The picture of one camera at one moment while it is drawn."""

    def __init__(self, world: SceneWorld, view: View, time: float) -> None:
        self.world, self.view = world, view
        self.ego = world.ego_pose(time)
        self.cuboids = world.cuboids(time)
        self.boxes_p4 = pixel_boxes(view, self.cuboids)
        self.colour = np.empty((IMAGE_HEIGHT, IMAGE_WIDTH, 3), np.float32)
        self.depth = np.full((IMAGE_HEIGHT, IMAGE_WIDTH), np.inf, np.float32)
        self.owner = np.full((IMAGE_HEIGHT, IMAGE_WIDTH), -1, np.int32)
        self.covered_m = np.zeros(len(world.objects), np.int64)

    def background(self) -> None:
        """Sky and ground, with the cuboids' shadows."""
        view, look = self.view, self.world.look
        horizon = (look.horizon_3 * look.tint_3).astype(np.float32)
        zenith = (look.zenith_3 * look.tint_3).astype(np.float32)
        self.colour[...] = horizon + view.sky_hw[..., None] * (zenith - horizon)
        x, y, yaw = self.ego
        c, s = np.cos(yaw), np.sin(yaw)
        rows, columns, _ = self.world.colour_yx3.shape
        gx, gy = view.ground_x, view.ground_y
        to_cell = np.float32(1.0 / GROUND_CELL)
        px = (np.float32(c) * gx - np.float32(s) * gy + np.float32(x)) * to_cell - np.float32(0.5)
        py = (np.float32(s) * gx + np.float32(c) * gy + np.float32(y)) * to_cell - np.float32(0.5)
        ground = _bilinear(self.world.colour_yx3, np.clip(px, 0, columns - 1.01), np.clip(py, 0, rows - 1.01))
        ground += view.haze[:, None] * (horizon - ground)
        self.colour.reshape(-1, 3)[view.ground_index] = ground
        self.depth.reshape(-1)[view.ground_index] = view.ground_depth
        self._shadows()

    def _shadows(self) -> None:
        """Darkens the ground under and beside what stands on it: its footprint, shifted away from the sun."""
        sun, (_, _, ego_yaw), view = self.world.look.sun_3, self.ego, self.view
        c, s = np.cos(ego_yaw), np.sin(ego_yaw)
        away = -np.array([c * sun[0] + s * sun[1], -s * sun[0] + c * sun[1]]) / sun[2]
        near = (self.cuboids.half_p3[:, 2] < 2.2) & (np.hypot(*self.cuboids.centre_p3[:, :2].T) < 35.0)
        flat = Cuboids(
            centre_p3=np.concatenate(
                [
                    self.cuboids.centre_p3[near, :2] + 0.5 * away * self.cuboids.half_p3[near, 2:],
                    np.zeros((near.sum(), 1)),
                ],
                1,
            ),
            half_p3=np.concatenate(
                [
                    self.cuboids.half_p3[near, :2] + 0.25 * np.abs(away) * self.cuboids.half_p3[near, 2:],
                    np.full((near.sum(), 1), 0.02),
                ],
                1,
            ),
            yaw_p=self.cuboids.yaw_p[near],
            part_p=self.cuboids.part_p[near],
            owner_p=self.cuboids.owner_p[near],
        )
        shaded = np.zeros((IMAGE_HEIGHT, IMAGE_WIDTH), bool)
        for i, (u0, v0, u1, v1) in enumerate(pixel_boxes(view, flat)):
            if u1 <= u0 or v1 <= v0:
                continue
            depth = self.depth[v0:v1, u0:u1]
            ray = view.ray_3hw[:, v0:v1, u0:u1]
            depth = np.where(np.isfinite(depth), depth, np.float32(1e6))
            px = np.float32(view.mount.translation[0] - flat.centre_p3[i, 0]) + depth * ray[0]
            py = np.float32(view.mount.translation[1] - flat.centre_p3[i, 1]) + depth * ray[1]
            lx, ly = to_local(float(flat.yaw_p[i]), px, py)
            hx, hy, _ = flat.half_p3[i]
            shaded[v0:v1, u0:u1] |= (np.abs(lx) < hx) & (np.abs(ly) < hy)
        self.colour[shaded] *= SHADOW

    def objects(self) -> None:
        """Draws every cuboid in view, nearest objects first."""
        distance = np.hypot(*self.cuboids.centre_p3[:, :2].T)
        order = np.lexsort((self.cuboids.owner_p, np.round(distance, 0)))
        for i in order:
            u0, v0, u1, v1 = self.boxes_p4[i]
            if u1 > u0 and v1 > v0:
                self._cuboid(int(i), slice(v0, v1), slice(u0, u1))

    def _cuboid(self, i: int, rows: slice, columns: slice) -> None:
        cuboids, view = self.cuboids, self.view
        (cx, cy, cz), half, yaw = cuboids.centre_p3[i], cuboids.half_p3[i], float(cuboids.yaw_p[i])
        tx, ty, tz = view.mount.translation
        ray = view.ray_3hw[:, rows, columns]
        dx, dy = to_local(yaw, ray[0], ray[1])
        origin = local_origin(yaw, (tx - cx, ty - cy, tz - cz))
        entry, axis, hit = intersect(origin, (dx, dy, ray[2]), half)
        owner = int(cuboids.owner_p[i])
        index = np.flatnonzero(hit)
        t, face_axis = entry.reshape(-1)[index], axis.reshape(-1)[index]
        local = [np.float32(o) + t * d.reshape(-1)[index] for o, d in zip(origin, (dx, dy, ray[2]), strict=True)]
        face, texel = self._texels(int(cuboids.part_p[i]), origin, local, face_axis, half)
        width = columns.stop - columns.start
        where = (index // width + rows.start) * IMAGE_WIDTH + index % width + columns.start
        solid = texel[:, 3] > 0
        owners, depth = self.owner.reshape(-1), self.depth.reshape(-1)
        self.covered_m[owner] += int(np.count_nonzero(solid & (owners[where] != owner)))
        front = np.flatnonzero(solid & (t < depth[where]))
        where = where[front]
        depth[where] = t[front]
        owners[where] = owner
        light = self._light(yaw)[face[front]][:, None] * self.world.look.tint_3.astype(np.float32)
        self.colour.reshape(-1, 3)[where] = texel[front, :3] * light

    def _texels(
        self,
        part: int,
        origin: tuple[float, float, float],
        local: list[Floats],
        face_axis: NDArray[np.uint8],
        half: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Face and RGBA of entry points given in the cuboid's axes."""
        scaled = [(p / np.float32(h) + 1) * np.float32(SIDE / 2) for p, h in zip(local, half, strict=True)]
        unit = [np.clip(v, 0, SIDE - 1).astype(np.int64) for v in scaled]
        # Seen from outside, the entry face of an axis is the one on the camera's side.
        face = face_axis * 2 + np.array([0 if o > 0 else 1 for o in origin])[face_axis]
        row = np.where(face_axis == 2, unit[1], unit[2])
        column = np.where(face_axis == 0, unit[1], unit[0])
        return face, self.world.textures[part][face, row, column]

    def _light(self, yaw: float) -> Floats:
        """[6] brightness of a cuboid's faces by their angle to the sun."""
        look = self.world.look
        angle = yaw + self.ego[2]
        c, s = np.cos(angle), np.sin(angle)
        normals = np.array([[c, s, 0], [-c, -s, 0], [-s, c, 0], [s, -c, 0], [0, 0, 1], [0, 0, -1]])
        return (look.ambient + (1.12 - look.ambient) * np.clip(normals @ look.sun_3, 0.0, 1.0)).astype(np.float32)


@lru_cache(maxsize=1)
def _noise_tile() -> Floats:
    """Standard normal noise twice the image size; images take windows of it, which is faster than drawing anew."""
    return np.random.default_rng(0).standard_normal((IMAGE_HEIGHT * 2, IMAGE_WIDTH * 2, 3), dtype=np.float32)


def render(
    world: SceneWorld, mount: Mount, time: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """One exposure at `time` seconds.

    Returns:
        uint8 [H, W, 3] RGB; per object, pixels that show it; pixels that would show it if nothing else stood there.
    """
    canvas = Canvas(world, view_of(mount), time)
    canvas.background()
    canvas.objects()
    v, u = int(rng.integers(IMAGE_HEIGHT)), int(rng.integers(IMAGE_WIDTH))
    gain = np.float32(rng.uniform(0.95, 1.05))
    image = canvas.colour * gain
    image += np.float32(3.0) * _noise_tile()[v : v + IMAGE_HEIGHT, u : u + IMAGE_WIDTH]
    shown = np.bincount(canvas.owner[canvas.owner >= 0], minlength=len(world.objects))
    return np.clip(image, 0, 255).astype(np.uint8), shown, np.maximum(canvas.covered_m, shown)
