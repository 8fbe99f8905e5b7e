"""The calibration set: which frames, and proof that they are still the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from altermoma.calib.coverage import cover
from altermoma.errors import DataError
from altermoma.frames import CLASS_NAMES, Frame
from altermoma.geometry import Geometry
from altermoma.progress import track
from altermoma.storage import content_key, write_json

SCHEMA = 1
_ANEW = "name the frames.json of a calibration, or leave calibration.manifest out: frames are then chosen anew"
_BANDS_M = (20.0, 40.0)
"""Near, middle and far."""


class Reader(Protocol):
    """What frames come from: nuScenes, the synthetic world."""

    def read(self, token: str) -> Frame: ...


@dataclass(frozen=True, kw_only=True)
class CalibrationFrame:
    """One frame of the set.

    Attributes:
        sha256: over its pictures, points and calibration as read.
        classes: names of the annotated classes in it; empty where there are no annotations.
        bands: which of near, middle and far hold a box.
        voxels: occupied voxels.
        light: mean brightness of its pictures, 0 to 255.
    """

    token: str
    sha256: str
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    voxels: int
    light: float


@dataclass(frozen=True, kw_only=True)
class FrameManifest:
    """The calibration set. `version` and `split` say where its tokens come from."""

    version: str
    split: str
    sweeps: int
    frames: tuple[CalibrationFrame, ...]

    @property
    def key(self) -> str:
        """Changes with every frame, their order aside from nothing."""
        return content_key([[frame.token, frame.sha256] for frame in self.frames])

    @property
    def tokens(self) -> list[str]:
        return [frame.token for frame in self.frames]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "key": self.key, **dataclasses.asdict(self)}


def digest(frame: Frame) -> str:
    """SHA-256 over everything of a frame that reaches the model."""
    total = hashlib.sha256()
    calibration = frame.calibration
    for array in (
        frame.images_vhw3,
        frame.points_p5,
        calibration.intrinsics_v33,
        calibration.camera_from_lidar_v44,
    ):
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def describe(frame: Frame, geometry: Geometry) -> CalibrationFrame:
    """What a frame shows."""
    boxes = frame.truth
    labels = sorted(set(boxes.labels_m.tolist())) if boxes is not None else []
    far_m = np.linalg.norm(boxes.geometry_m9[:, :2], axis=1) if boxes is not None else np.zeros(0)
    bands = sorted(set(np.searchsorted(_BANDS_M, far_m).tolist()))
    low, high = np.array(geometry.point_range[:3]), np.array(geometry.point_range[3:])
    xyz = frame.points_p5[:, :3]
    inside = xyz[((xyz >= low) & (xyz < high)).all(axis=1)]
    cells = np.floor((inside - low) / np.array(geometry.voxel_size)).astype(np.int64)
    voxels = len(np.unique(cells @ np.array([1 << 40, 1 << 20, 1])))
    return CalibrationFrame(
        token=frame.token,
        sha256=digest(frame),
        classes=tuple(CLASS_NAMES[label] for label in labels),
        bands=tuple(("near", "middle", "far")[band] for band in bands),
        voxels=voxels,
        light=round(float(frame.images_vhw3[:, ::8, ::8].mean()), 1),
    )


def choose_frames(
    reader: Reader, tokens: Sequence[str], geometry: Geometry, *, count: int, pool: int
) -> tuple[CalibrationFrame, ...]:
    """Frames that together show as many classes, distances, voxel counts and brightnesses as a pool of them does.

    Args:
        reader: where frames come from.
        tokens: to choose from, scene by scene in time.
        geometry: of the model, for voxels.
        count: frames wanted.
        pool: frames spread evenly over the tokens that are looked at.

    Raises:
        DataError: fewer frames than wanted.
    """
    if len(tokens) < count:
        raise DataError(
            f"{len(tokens)} frames to calibrate with",
            expected=f"at least {count}, as the calibration recipe says",
            remedy="lower `frames` in the calibration recipe, or name a larger split",
        )
    size = min(pool, len(tokens))
    candidates = [tokens[index * len(tokens) // size] for index in range(size)]
    found = [describe(reader.read(token), geometry) for token in track(candidates, "Looking for frames")]
    return tuple(found[index] for index in cover(_features(found), count))


def _features(frames: Sequence[CalibrationFrame]) -> list[frozenset[str]]:
    """What each frame shows, in words; voxel counts and brightness in eighths between the least and the most."""
    voxels, light = (_eighths([getattr(frame, name) for frame in frames]) for name in ("voxels", "light"))
    return [
        frozenset({*frame.classes, *frame.bands, f"voxels {voxels[i]}", f"light {light[i]}"})
        for i, frame in enumerate(frames)
    ]


def _eighths(values: Sequence[float]) -> list[int]:
    low, high = min(values), max(values)
    return [min(7, int(8 * (value - low) / max(high - low, 1e-9))) for value in values]


def write_manifest(path: Path, manifest: FrameManifest) -> None:
    write_json(path, manifest.to_dict())


def read_manifest(path: Path) -> FrameManifest:
    """Reads a manifest of calibration frames.

    Raises:
        DataError: no such file, none of ours, altered, or without frames.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"no calibration manifest at {path}", expected="a JSON file that altermoma wrote", remedy=_ANEW
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as JSON: {error}", expected="a calibration manifest", remedy=_ANEW
        ) from error
    return parse_manifest(record, str(path))


def parse_manifest(record: Any, source: str) -> FrameManifest:
    """A manifest from its JSON record; `source` names it in errors."""
    try:
        schema, key = record["schema"], record["key"]
        frames = tuple(
            CalibrationFrame(**{**item, "classes": tuple(item["classes"]), "bands": tuple(item["bands"])})
            for item in record["frames"]
        )
        manifest = FrameManifest(
            version=record["version"], split=record["split"], sweeps=record["sweeps"], frames=frames
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{source} is no calibration manifest: {error!r}",
            expected="a file that altermoma wrote",
            remedy=_ANEW,
        ) from error
    if schema != SCHEMA:
        raise DataError(f"{source} has schema {schema!r}", expected=f"schema {SCHEMA}", remedy=_ANEW)
    if not frames:
        raise DataError(
            f"{source} names no frames",
            expected="at least one calibration frame",
            remedy=_ANEW,
        )
    if key != manifest.key:
        raise DataError(
            f"{source} was altered: its key does not fit its frames",
            expected="the manifest as it was written",
            remedy=_ANEW,
        )
    return manifest


def check_frame(frame: Frame, expected: CalibrationFrame) -> None:
    """Holds a frame that was read against the manifest.

    Raises:
        DataError: its data are not those that were chosen.
    """
    if digest(frame) != expected.sha256:
        raise DataError(
            f"frame {frame.token} is not what the calibration manifest names: its SHA-256 differs",
            expected=expected.sha256,
            remedy="use the data set and the number of sweeps that the manifest was made with, or choose frames anew",
        )
