"""A tiny random data set in the nuScenes v1.0 schema: numbers without meaning, but with every link, pose and tilt."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VERSION = "v1.0-mini"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
CATEGORIES = (
    ("vehicle.car", "vehicle.parked"),
    ("human.pedestrian.adult", "pedestrian.standing"),
    ("vehicle.bicycle", "cycle.with_rider"),
    ("movable_object.barrier", ""),
    ("vehicle.bus.rigid", "vehicle.moving"),
    ("animal", ""),
)
SAMPLES, SWEEPS_BETWEEN = 4, 2
SECONDS = 0.5


class _Writer:
    """Collects records; tokens are the table name and a running number."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.rng = root, np.random.default_rng(seed)
        self.tables: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def add(self, table: str, **fields: Any) -> str:
        token = f"{table}-{len(self.tables[table])}"
        self.tables[table].append({"token": token, **fields})
        return token

    def quaternion(self, yaw: float, tilt: float = 0.03) -> list[float]:
        numbers = np.array([np.cos(yaw / 2), *self.rng.normal(0, tilt, 2), np.sin(yaw / 2)])
        return (numbers / np.linalg.norm(numbers)).tolist()

    def save(self) -> None:
        folder = self.root / VERSION
        folder.mkdir(parents=True)
        for name, rows in self.tables.items():
            (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        (folder / "splits.json").write_text(json.dumps({"custom": ["scene-0103"]}), encoding="utf-8")


def write_tiny_nuscenes(root: Path, seed: int = 0) -> Path:
    """Two scenes (one of mini_train, one of mini_val), four key frames each, two sweeps between key frames."""
    out = _Writer(root, seed)
    names = dict.fromkeys(a for _, a in CATEGORIES if a)
    attributes = {name: out.add("attribute", name=name, description="") for name in names}
    categories = [out.add("category", name=name, description="") for name, _ in CATEGORIES]
    out.add("visibility", level="v80-100", description="")
    sensors = _sensors(out)
    log = out.add("log", logfile="tiny", vehicle="tiny", date_captured="2020-01-01", location="boston-seaport")
    (root / "maps").mkdir(parents=True)
    Image.new("L", (8, 8)).save(root / "maps" / "tiny.png")
    out.add("map", log_tokens=[log], category="semantic_prior", filename="maps/tiny.png")
    for number, name in enumerate(("scene-0061", "scene-0103")):
        scene = out.add("scene", log_token=log, nbr_samples=SAMPLES, name=name, description="")
        samples = _samples(out, scene, 1_600_000_000_000_000 + number * 100_000_000)
        _exposures(out, samples, sensors)
        _tracks(out, samples, categories, attributes)
    out.save()
    return root


def _sensors(out: _Writer) -> dict[str, str]:
    sensors = {}
    for index, channel in enumerate(("LIDAR_TOP", *CAMERAS)):
        lidar = channel == "LIDAR_TOP"
        sensor = out.add("sensor", channel=channel, modality="lidar" if lidar else "camera")
        # Cameras look along their z axis: x right, y down, turned about the vehicle's z.
        forward = np.array([0.5, -0.5, 0.5, -0.5]) + out.rng.normal(0, 0.01, 4)
        yaw = np.array([np.cos(index / 2), 0, 0, np.sin(index / 2)])
        turned = [
            yaw[0] * forward[0] - yaw[3] * forward[3],
            yaw[0] * forward[1] - yaw[3] * forward[2],
            yaw[0] * forward[2] + yaw[3] * forward[1],
            yaw[0] * forward[3] + yaw[3] * forward[0],
        ]
        sensors[channel] = out.add(
            "calibrated_sensor",
            sensor_token=sensor,
            translation=out.rng.normal(0, 0.5, 3).tolist(),
            rotation=out.quaternion(-1.57) if lidar else (np.array(turned) / np.linalg.norm(turned)).tolist(),
            camera_intrinsic=[] if lidar else [[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]],
        )
    return sensors


def _samples(out: _Writer, scene: str, start: int) -> list[str]:
    first = len(out.tables["sample"])
    tokens = [f"sample-{first + i}" for i in range(SAMPLES)]
    for i in range(SAMPLES):
        out.add(
            "sample",
            timestamp=start + round(i * SECONDS * 1e6),
            scene_token=scene,
            prev=tokens[i - 1] if i else "",
            next=tokens[i + 1] if i + 1 < SAMPLES else "",
        )
    out.tables["scene"][-1] |= {"first_sample_token": tokens[0], "last_sample_token": tokens[-1]}
    return tokens


def _exposures(out: _Writer, samples: list[str], sensors: dict[str, str]) -> None:
    stamps = {row["token"]: row["timestamp"] for row in out.tables["sample"]}
    for number, (channel, sensor) in enumerate(sensors.items()):
        lidar, previous = channel == "LIDAR_TOP", None
        for index in range((SAMPLES - 1) * (SWEEPS_BETWEEN + 1) + 1):
            sample = samples[-(-index // (SWEEPS_BETWEEN + 1))]
            stamp = stamps[samples[0]] + round(index * SECONDS / (SWEEPS_BETWEEN + 1) * 1e6)
            key = index % (SWEEPS_BETWEEN + 1) == 0
            folder = f"{'samples' if key else 'sweeps'}/{channel}"
            suffix = "pcd.bin" if lidar else "jpg"
            record = {
                "sample_token": sample,
                "ego_pose_token": _pose(out, stamp + 5000 * number, index),
                "calibrated_sensor_token": sensor,
                "timestamp": stamp + 5000 * number,
                "fileformat": "pcd" if lidar else "jpg",
                "is_key_frame": key,
                "height": 0 if lidar else 48,
                "width": 0 if lidar else 64,
                "filename": f"{folder}/{sample}-{index}.{suffix}",
                "prev": previous["token"] if previous else "",
                "next": "",
            }
            token = out.add("sample_data", **record)
            if previous:
                previous["next"] = token
            previous = out.tables["sample_data"][-1]
            _sensor_file(out, out.root / record["filename"], lidar)


def _pose(out: _Writer, stamp: int, index: int) -> str:
    place = [400 + 3.0 * index, 1000 + 2.0 * index, 0.0]
    return out.add("ego_pose", timestamp=stamp, rotation=out.quaternion(0.6 + 0.05 * index), translation=place)


def _sensor_file(out: _Writer, path: Path, lidar: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not lidar:
        Image.fromarray(out.rng.integers(0, 255, (48, 64, 3), np.uint8)).save(path)
        return
    points = out.rng.normal(0, (12, 12, 1, 0, 0), (400, 5))
    points[:40, :2] *= 0.05  # returns from the vehicle itself
    points[:, 3] = out.rng.integers(0, 255, len(points))
    points.astype(np.float32).tofile(path)


def _tracks(out: _Writer, samples: list[str], categories: list[str], attributes: dict[str, str]) -> None:
    for index in range(12):
        kind = index % len(CATEGORIES)
        seen = samples[: SAMPLES - index // 4]
        first = len(out.tables["sample_annotation"])
        tokens = [f"sample_annotation-{first + i}" for i in range(len(seen))]
        instance = out.add(
            "instance",
            category_token=categories[kind],
            nbr_annotations=len(seen),
            first_annotation_token=tokens[0],
            last_annotation_token=tokens[-1],
        )
        place, speed = out.rng.normal(0, 12, 3) * (1, 1, 0.05), out.rng.normal(0, 2, 3) * (1, 1, 0.01)
        attribute = CATEGORIES[kind][1]
        size = out.rng.uniform(0.5, 4, 3).tolist()
        for i, sample in enumerate(seen):
            out.add(
                "sample_annotation",
                sample_token=sample,
                instance_token=instance,
                visibility_token="visibility-0",
                attribute_tokens=[attributes[attribute]] if attribute else [],
                translation=(np.array([400 + 9.0 * i, 1000 + 6.0 * i, 1]) + place + i * SECONDS * speed).tolist(),
                size=size,
                rotation=out.quaternion(out.rng.uniform(-3, 3), tilt=0.005),
                prev=tokens[i - 1] if i else "",
                next=tokens[i + 1] if i + 1 < len(seen) else "",
                num_lidar_pts=int(out.rng.integers(0, 3)),
                num_radar_pts=int(out.rng.integers(0, 2)),
            )
