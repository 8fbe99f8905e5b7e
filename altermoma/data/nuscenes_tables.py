"""The nuScenes v1.0 tables, indexed by token and reduced to what a reader needs.

v1.0-trainval holds 2.6 million `sample_data` records, five of six of which are camera and radar frames between key
frames. Each table is reduced while it is parsed, so that they never exist all at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from altermoma.data.poses import checked, rigid
from altermoma.errors import DataError
from altermoma.frames import CLASS_NAMES

LIDAR = "LIDAR_TOP"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""Camera order of BEVFusion's nuScenes checkpoints."""

CLASS_OF_CATEGORY: dict[str, str] = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""Detection class of each annotated category (nuScenes detection task); others are not detected."""

V = TypeVar("V")


class Sensor(NamedTuple):
    channel: str
    rotation: tuple[float, ...]
    ego_from_sensor_44: NDArray[np.float64]
    intrinsics_33: NDArray[np.float64] | None


class Exposure(NamedTuple):
    """One file of one sensor (a `sample_data` record)."""

    token: str
    sample: str
    pose: str
    sensor: Sensor
    timestamp: int
    filename: str
    previous: str
    is_key: bool


class Pose(NamedTuple):
    rotation: tuple[float, ...]
    translation: tuple[float, ...]

    def matrix(self, source: str) -> NDArray[np.float64]:
        """global_from_ego [4, 4]."""
        return rigid(self.rotation, self.translation, source)


class Annotation(NamedTuple):
    """One box in the global frame; size is width, length, height; label -1 for a category that is not detected."""

    token: str
    sample: str
    label: int
    translation: tuple[float, ...]
    size: tuple[float, ...]
    rotation: tuple[float, ...]
    previous: str
    next: str
    points: int


class SampleRecord(NamedTuple):
    token: str
    scene: str
    timestamp: int


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Indexed tables. `key_exposures` and `annotations_of` are by sample token, the rest by own token."""

    scenes: dict[str, str]
    samples: dict[str, SampleRecord]
    exposures: dict[str, Exposure]
    poses: dict[str, Pose]
    annotations: dict[str, Annotation]
    key_exposures: dict[str, dict[str, Exposure]] = field(default_factory=dict)
    annotations_of: dict[str, list[Annotation]] = field(default_factory=dict)


def load_tables(folder: Path) -> Tables:
    """Reads and indexes the tables of one version folder, such as `<root>/v1.0-mini`.

    Raises:
        DataError: a table is missing, is not JSON, or a record lacks a field or refers to nothing.
    """
    channels = _index(folder, "sensor", lambda r: (r["token"], r["channel"]))
    sensors = _index(folder, "calibrated_sensor", lambda r: (r["token"], _sensor(r, channels)))
    wanted = {LIDAR, *CAMERAS}

    def exposure(record: dict[str, Any]) -> tuple[str, Exposure] | None:
        sensor = sensors[record["calibrated_sensor_token"]]
        if sensor.channel not in wanted or not (record["is_key_frame"] or sensor.channel == LIDAR):
            return None
        return record["token"], _exposure(record, sensor)

    exposures = _index(folder, "sample_data", exposure)
    used_poses = {e.pose for e in exposures.values()}
    poses = _index(folder, "ego_pose", lambda r: (r["token"], _pose(r)) if r["token"] in used_poses else None)
    categories = _index(folder, "category", lambda r: (r["token"], _label(r["name"])))
    labels = _index(folder, "instance", lambda r: (r["token"], categories[r["category_token"]]))
    tables = Tables(
        scenes=_index(folder, "scene", lambda r: (r["token"], r["name"])),
        samples=_index(
            folder, "sample", lambda r: (r["token"], SampleRecord(r["token"], r["scene_token"], r["timestamp"]))
        ),
        exposures=exposures,
        poses=poses,
        annotations=_index(
            folder, "sample_annotation", lambda r: (r["token"], _annotation(r, labels[r["instance_token"]]))
        ),
    )
    for item in tables.exposures.values():
        if item.is_key:
            tables.key_exposures.setdefault(item.sample, {})[item.sensor.channel] = item
    for box in tables.annotations.values():
        tables.annotations_of.setdefault(box.sample, []).append(box)
    return tables


def _index(folder: Path, name: str, reduce: Callable[[dict[str, Any]], tuple[str, V] | None]) -> dict[str, V]:
    """One table as a dict by token; `reduce` keeps what is needed of a record, or drops it."""
    path = folder / f"{name}.json"
    result: dict[str, V] = {}

    def hook(record: dict[str, Any]) -> None:
        try:
            kept = reduce(record)
        except (KeyError, TypeError) as error:
            token = record.get("token", "without token")
            raise DataError(
                f"{path}: record {token}: {error!r} is missing or refers to nothing",
                expected="the nuScenes v1.0 schema with matching tables",
                remedy="take all tables from the same download",
            ) from error
        if kept is not None:
            result[kept[0]] = kept[1]

    try:
        with path.open(encoding="utf-8") as file:
            # The hook runs on each record as soon as it is parsed: the full table is never held as dicts.
            rows = json.load(file, object_hook=hook)
    except FileNotFoundError as error:
        raise DataError(
            f"no table {path}", expected="all nuScenes v1.0 tables", remedy="unpack the metadata archive again"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", expected="a readable file", remedy="check who may read it"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON: {error}", expected="a whole table", remedy="unpack the metadata archive again"
        ) from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path} is not a list", expected="a list of records", remedy="unpack the metadata archive again"
        )
    return result


def _label(category: str) -> int:
    name = CLASS_OF_CATEGORY.get(category)
    return CLASS_NAMES.index(name) if name else -1


def _sensor(record: dict[str, Any], channels: dict[str, str]) -> Sensor:
    channel = channels[record["sensor_token"]]
    source = f"calibrated_sensor {record['token']} ({channel})"
    matrix, rotation = rigid(record["rotation"], record["translation"], source), tuple(record["rotation"])
    if not channel.startswith("CAM"):
        return Sensor(channel, rotation, matrix, None)
    return Sensor(channel, rotation, matrix, _intrinsics(record["camera_intrinsic"], f"camera_intrinsic of {source}"))


def _intrinsics(values: object, source: str) -> NDArray[np.float64]:
    matrix_33 = checked(values, (3, 3), source)
    if min(matrix_33[0, 0], matrix_33[1, 1]) <= 0 or not np.allclose(matrix_33[2], (0, 0, 1)):
        raise DataError(
            f"{source} is {matrix_33.tolist()}",
            expected="[[fx, skew, cx], [0, fy, cy], [0, 0, 1]] in pixels, with fx and fy above 0",
            remedy="repair the calibration table or download it again",
        )
    return matrix_33


def _exposure(record: dict[str, Any], sensor: Sensor) -> Exposure:
    return Exposure(
        record["token"],
        record["sample_token"],
        record["ego_pose_token"],
        sensor,
        record["timestamp"],
        record["filename"],
        record["prev"],
        record["is_key_frame"],
    )


def _pose(record: dict[str, Any]) -> Pose:
    return Pose(tuple(record["rotation"]), tuple(record["translation"]))


def _annotation(record: dict[str, Any], label: int) -> Annotation:
    return Annotation(
        record["token"],
        record["sample_token"],
        label,
        tuple(record["translation"]),
        _size(record),
        tuple(record["rotation"]),
        record["prev"],
        record["next"],
        record["num_lidar_pts"] + record["num_radar_pts"],
    )


def _size(record: dict[str, Any]) -> tuple[float, ...]:
    size = tuple(record["size"])
    if len(size) != 3 or not all(0 < edge < math.inf for edge in size):
        raise DataError(
            f"sample_annotation {record['token']} has size {list(size)}",
            expected="width, length and height in metres, each above 0",
            remedy="repair the table or download it again",
        )
    return size
