"""The records of nuScenes v1.0's 13 tables."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from altermoma.data.synth.catalogue import ATTRIBUTES, CATEGORIES, VISIBILITIES
from altermoma.data.synth.mounting import SENSORS, Mount

Record = dict[str, Any]
TABLES: tuple[str, ...] = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
    "sample", "sample_data", "sample_annotation", "map",
)  # fmt: skip


def token(*key: object) -> str:
    """32 hex digits that depend on the key only."""
    return hashlib.md5("/".join(map(str, key)).encode(), usedforsecurity=False).hexdigest()


def category_token(name: str) -> str:
    return token("category", name)


def attribute_token(name: str) -> str:
    return token("attribute", name)


def sensor_token(channel: str) -> str:
    return token("sensor", channel)


def visibility_token(share: float) -> str:
    """nuScenes's four levels: 0-40, 40-60, 60-80, 80-100 % visible."""
    return str(1 + sum(share >= bound for bound in (0.4, 0.6, 0.8)))


def fixed_tables() -> dict[str, list[Record]]:
    """The tables that are the same in every world."""
    return {
        "category": [{"token": category_token(n), "name": n, "description": ""} for n in CATEGORIES],
        "attribute": [{"token": attribute_token(n), "name": n, "description": ""} for n in ATTRIBUTES],
        "visibility": [{"token": str(i + 1), "level": n, "description": ""} for i, n in enumerate(VISIBILITIES)],
        "sensor": [{"token": sensor_token(m.channel), "channel": m.channel, "modality": m.modality} for m in SENSORS],
    }


def calibrated_sensor(mount: Mount, scene: str) -> Record:
    return {
        "token": token(scene, "calibrated_sensor", mount.channel),
        "sensor_token": sensor_token(mount.channel),
        "translation": list(mount.translation),
        "rotation": list(mount.rotation),
        "camera_intrinsic": mount.matrix().tolist() if mount.modality == "camera" else [],
    }


def chain(records: list[Record]) -> None:
    """Fills `prev` and `next` of records that are in order of time."""
    for i, record in enumerate(records):
        record["prev"] = records[i - 1]["token"] if i else ""
        record["next"] = records[i + 1]["token"] if i + 1 < len(records) else ""


def to_json(records: object) -> str:
    """Compact JSON with a stable order of keys."""
    return json.dumps(records, separators=(",", ":"), sort_keys=True)
