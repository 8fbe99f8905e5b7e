"""Runs the sensors through one scene, writes their files and collects the scene's records."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from altermoma.data.synth import camera, lidar, radar, tables
from altermoma.data.synth.mounting import (
    CAMERAS,
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    LIDAR,
    RADARS,
    SENSORS,
    Mount,
    Quaternion,
    yaw_quaternion,
)
from altermoma.data.synth.road import GRASS, PAVEMENT
from altermoma.data.synth.tables import Record, token
from altermoma.data.synth.world import ANNOTATION_RADIUS, GROUND_CELL, KEY_PERIOD, SceneWorld, scene_rng

VERSION = "v1.0-mini"
JPEG_QUALITY = 90
SWEEP_LEADS: tuple[float, ...] = (0.10, 0.05)
"""Seconds before each key frame at which an extra LiDAR sweep is recorded (20 Hz, only the last ones kept)."""
_EPOCH_US = 1_535_000_000_000_000
_MAP_CELL = 0.1


class SceneWriter:
    """Writes one scene.

    Args:
        root: data set root; the folders `samples/<channel>`, `sweeps/LIDAR_TOP` and `maps` exist.
        world: the scene's contents.
    """

    def __init__(self, root: Path, world: SceneWorld) -> None:
        self.root, self.world, self.name = root, world, world.name
        self.key = f"{world.seed}/{world.name}"
        # Some time in four months, whichever other scenes are written.
        self.epoch_us = _EPOCH_US + (zlib.crc32(self.key.encode()) % 10_000_000) * 1_000_000
        self.log = f"synth-{world.seed}-{world.name}"
        self.records: dict[str, list[Record]] = {name: [] for name in tables.TABLES}
        self.sensor_data: dict[str, list[Record]] = {mount.channel: [] for mount in SENSORS}
        self.annotations: dict[int, list[Record]] = {}

    def write(self) -> dict[str, list[Record]]:
        """All files and records of the scene."""
        self.records["calibrated_sensor"] = [tables.calibrated_sensor(mount, self.key) for mount in SENSORS]
        for k in range(self.world.keyframes):
            self._keyframe(k)
        tables.chain(self.records["sample"])
        for channel in self.sensor_data.values():
            tables.chain(channel)
            self.records["sample_data"] += channel
        self._instances()
        self._scene()
        return self.records

    def _token(self, *key: object) -> str:
        return token(self.key, *key)

    def _micros(self, time: float) -> int:
        return self.epoch_us + round(time * 1e6)

    def _keyframe(self, k: int) -> None:
        world, time = self.world, k * KEY_PERIOD
        sample = self._token("sample", k)
        self.records["sample"].append(
            {"token": sample, "timestamp": self._micros(time), "scene_token": self._token("scene")}
        )
        for lead in SWEEP_LEADS:
            rng = scene_rng(world.seed, self.name, f"sweep/{k}/{lead}")
            path = self._data(LIDAR, sample, time - lead, key_frame=False)
            path.write_bytes(lidar.scan(world, time - lead, rng).tobytes())
        points = lidar.scan(world, time, scene_rng(world.seed, self.name, f"lidar/{k}"))
        self._data(LIDAR, sample, time, key_frame=True).write_bytes(points.tobytes())
        shown, covered = self._images(k, sample)
        radar_hits = self._radars(k, sample)
        self._annotate(k, points, shown / np.maximum(covered, 1), radar_hits)

    def _images(self, k: int, sample: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shown = np.zeros(len(self.world.objects), np.int64)
        covered = shown.copy()
        for mount in CAMERAS:
            time = k * KEY_PERIOD - mount.lead
            rng = scene_rng(self.world.seed, self.name, f"{mount.channel}/{k}")
            image, seen, area = camera.render(self.world, mount, time, rng)
            path = self._data(mount, sample, time, key_frame=True)
            Image.fromarray(image).save(path, quality=JPEG_QUALITY)
            shown += seen
            covered += area
        return shown, covered

    def _radars(self, k: int, sample: str) -> NDArray[np.int64]:
        hits = np.zeros(len(self.world.objects), np.int64)
        for mount in RADARS:
            time = k * KEY_PERIOD - mount.lead
            scan = radar.scan(self.world, mount, time, scene_rng(self.world.seed, self.name, f"{mount.channel}/{k}"))
            self._data(mount, sample, time, key_frame=True).write_bytes(radar.pcd_bytes(scan.points))
            hits += scan.hits_m
        return hits

    def _data(self, mount: Mount, sample: str, time: float, *, key_frame: bool) -> Path:
        """Records one sensor file with its ego pose, and returns where to write it."""
        stamp = self._micros(time)
        suffix = {"camera": "jpg", "lidar": "pcd.bin", "radar": "pcd"}[mount.modality]
        folder = "samples" if key_frame else "sweeps"
        filename = f"{folder}/{mount.channel}/{self.log}__{mount.channel}__{stamp}.{suffix}"
        x, y, yaw = self.world.ego_pose(time)
        name = self._token(mount.channel, stamp)
        self.records["ego_pose"].append(
            {"token": name, "timestamp": stamp, "rotation": list(yaw_quaternion(yaw)), "translation": [x, y, 0.0]}
        )
        is_camera = mount.modality == "camera"
        self.sensor_data[mount.channel].append(
            {
                "token": name,
                "sample_token": sample,
                "ego_pose_token": name,
                "calibrated_sensor_token": self._token("calibrated_sensor", mount.channel),
                "timestamp": stamp,
                "fileformat": suffix.split(".")[0],
                "is_key_frame": key_frame,
                "height": IMAGE_HEIGHT if is_camera else 0,
                "width": IMAGE_WIDTH if is_camera else 0,
                "filename": filename,
            }
        )
        return self.root / filename

    def _annotate(
        self, k: int, points_n5: NDArray[np.float32], visible_m: NDArray[np.float64], radar_m: NDArray[np.int64]
    ) -> None:
        world, time = self.world, k * KEY_PERIOD
        near, pose = world.existing(time, ANNOTATION_RADIUS), world.object_pose(time)
        global_n3 = self._to_global(points_n5[:, :3].astype(np.float64), time)
        for m in np.flatnonzero(near):
            if not world.kind_m[m].category:
                continue
            length, width, height = (float(v) for v in world.size_m3[m])
            x, y, yaw = float(pose.x[m]), float(pose.y[m]), float(pose.yaw[m])
            attribute = world.objects[m].attribute
            rotation: Quaternion = yaw_quaternion(yaw)
            self.annotations.setdefault(int(m), []).append(
                {
                    "token": self._token("annotation", m, k),
                    "sample_token": self._token("sample", k),
                    "instance_token": self._token("instance", m),
                    "visibility_token": tables.visibility_token(float(visible_m[m])),
                    "attribute_tokens": [tables.attribute_token(attribute)] if attribute else [],
                    "translation": [x, y, height / 2],
                    "size": [width, length, height],
                    "rotation": list(rotation),
                    "num_lidar_pts": _count_inside(global_n3, (x, y, yaw), (length, width, height)),
                    "num_radar_pts": int(radar_m[m]),
                }
            )

    def _to_global(self, points_n3: NDArray[np.float64], time: float) -> NDArray[np.float64]:
        ego_n3 = points_n3 @ LIDAR.ego_from_sensor().T + LIDAR.translation
        x, y, yaw = self.world.ego_pose(time)
        c, s = np.cos(yaw), np.sin(yaw)
        return np.asarray(ego_n3 @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]) + (x, y, 0.0), np.float64)

    def _instances(self) -> None:
        for m, chain in sorted(self.annotations.items()):
            tables.chain(chain)
            self.records["sample_annotation"] += chain
            self.records["instance"].append(
                {
                    "token": self._token("instance", m),
                    "category_token": tables.category_token(self.world.kind_m[m].category),
                    "nbr_annotations": len(chain),
                    "first_annotation_token": chain[0]["token"],
                    "last_annotation_token": chain[-1]["token"],
                }
            )

    def _scene(self) -> None:
        samples, log = self.records["sample"], self._token("log")
        self.records["scene"].append(
            {
                "token": self._token("scene"),
                "log_token": log,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0]["token"],
                "last_sample_token": samples[-1]["token"],
                "name": self.name,
                "description": f"Synthetic street, ego at {self.world.ego_speed:.1f} m/s",
            }
        )
        self.records["log"].append(
            {
                "token": log,
                "logfile": self.log,
                "vehicle": "synth",
                "date_captured": "2018-08-23",
                "location": "singapore-onenorth",
            }
        )
        filename = f"maps/{self._token('map')}.png"
        self.records["map"].append(
            {"token": self._token("map"), "log_tokens": [log], "category": "semantic_prior", "filename": filename}
        )
        self._map().save(self.root / filename)

    def _map(self) -> Image.Image:
        """Drivable surface and pavement as nuScenes's semantic prior: 0.1 m per pixel, row 0 at the largest y."""
        code = self.world.surface_yx
        mask = np.where((code > GRASS) & (code <= PAVEMENT), np.uint8(255), np.uint8(0))[::-1]
        scale = GROUND_CELL / _MAP_CELL
        size = round(mask.shape[1] * scale), round(mask.shape[0] * scale)
        return Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)


def _count_inside(
    points_n3: NDArray[np.float64], pose: tuple[float, float, float], size: tuple[float, float, float]
) -> int:
    """Points within a box that stands on the ground, borders included."""
    x, y, yaw = pose
    length, width, height = size
    c, s = np.cos(yaw), np.sin(yaw)
    dx, dy = points_n3[:, 0] - x, points_n3[:, 1] - y
    inside = (np.abs(c * dx + s * dy) <= length / 2) & (np.abs(c * dy - s * dx) <= width / 2)
    return int(np.count_nonzero(inside & (points_n3[:, 2] >= 0.0) & (points_n3[:, 2] <= height)))
