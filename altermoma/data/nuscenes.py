"""nuScenes v1.0 reader: the synthetic world, v1.0-mini, v1.0-trainval and v1.0-test through one code path.

The tables are read here, without the nuscenes-devkit, which is the oracle of the tests and the official evaluation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from altermoma.data import nuscenes_tables
from altermoma.data.nuscenes_tables import CAMERAS, LIDAR, Annotation, Exposure, Tables
from altermoma.data.poses import inverse, rigid
from altermoma.data.sensors import read_cameras, read_sweep
from altermoma.errors import DataError
from altermoma.frames import Boxes, Calibration, Frame

MINI_TRAIN = (
    "scene-0061", "scene-0553", "scene-0655", "scene-0757", "scene-0796", "scene-1077", "scene-1094", "scene-1100",
)  # fmt: skip
MINI_VAL = ("scene-0103", "scene-0916")
SPLIT_SUFFIX = {
    "train": "trainval", "val": "trainval", "train_detect": "trainval", "train_track": "trainval",
    "mini_train": "mini", "mini_val": "mini", "test": "test",
}  # fmt: skip
"""Splits of the nuscenes-devkit and the ending of the version that holds them."""

CLOSE = 1.0
"""Returns of earlier sweeps with |x| and |y| below this (metres, sensor frame) are the vehicle itself."""

MAX_TIME_DIFFERENCE = 1.5
"""Seconds between neighbouring annotations beyond which a velocity is not estimated."""

_TABLES = "take all tables from the same download"


@dataclass(frozen=True, kw_only=True)
class Poses:
    """The vehicle at a key sweep, all float64 rigid [4, 4]."""

    ego_from_lidar_44: NDArray[np.float64]
    global_from_ego_44: NDArray[np.float64]

    @property
    def global_from_lidar_44(self) -> NDArray[np.float64]:
        return self.global_from_ego_44 @ self.ego_from_lidar_44


class NuScenesReader:
    """Frames of a nuScenes data set.

    Args:
        root: folder that holds `samples/`, `sweeps/` and the version folder with the tables.
        version: such as v1.0-mini.
        sweeps: LiDAR sweeps merged per frame, the key sweep included.
        repeat_key: a frame without earlier sweeps has its key sweep in their place, without close returns.

    Raises:
        DataError: no such folder or version, or unusable tables.
    """

    def __init__(self, root: Path, version: str, sweeps: int = 3, *, repeat_key: bool = False) -> None:
        self.root, self.version, self.sweeps, self.repeat_key = Path(root), version, sweeps, repeat_key
        if sweeps < 1:
            raise DataError(f"sweeps = {sweeps}", expected="at least 1, the key sweep")
        if not (self.root / version).is_dir():
            found = sorted(p.parent.name for p in self.root.glob("*/sample_data.json"))
            raise DataError(
                f"no version folder {self.root / version}",
                expected="a nuScenes root with the tables in <root>/<version>/",
                remedy=f"versions found there: {', '.join(found)}" if found else "check data.root and data.version",
            )

    @cached_property
    def tables(self) -> Tables:
        """The indexed tables, read on first use."""
        return nuscenes_tables.load_tables(self.root / self.version)

    def tokens(self, split: str) -> list[str]:
        """Sample tokens of a devkit split or of a custom one in `<version>/splits.json`, scene by scene in time.

        Raises:
            DataError: unknown split, a split of another version, or none of its scenes are here.
        """
        names = set(self._scenes_of(split))
        wanted = {token: i for i, (token, name) in enumerate(self.tables.scenes.items()) if name in names}
        samples = [s for s in self.tables.samples.values() if s.scene in wanted]
        if not samples:
            raise DataError(
                f"no scene of split {split!r} in {self.root / self.version}",
                expected=f"scenes such as {', '.join(sorted(names)[:3])}",
                remedy="check data.root and the split",
            )
        return [s.token for s in sorted(samples, key=lambda s: (wanted[s.scene], s.timestamp))]

    def read(self, token: str) -> Frame:
        """One key frame with all sensors, calibration and truth.

        Raises:
            DataError: a broken or missing LiDAR file, bad calibration, or no camera left. One dead camera and an
                empty cloud give zeros and a warning instead.
        """
        images_vhw3, warnings = read_cameras(
            {name: self.root / self._exposure(token, name).filename for name in CAMERAS}
        )
        points_p5 = self._points(token)
        if not len(points_p5):
            name = self._exposure(token, LIDAR).filename
            warnings = (*warnings, f"{name} has no points: the LiDAR branch sees zeros")
        poses = self.poses(token)
        truth = self.truth(token)
        return Frame(
            token=token,
            scene=self.tables.scenes[self._sample(token).scene],
            images_vhw3=images_vhw3,
            points_p5=points_p5,
            calibration=self._calibration(token, (images_vhw3.shape[1], images_vhw3.shape[2])),
            ego_from_lidar_44=poses.ego_from_lidar_44,
            global_from_ego_44=poses.global_from_ego_44,
            truth=truth[0] if truth else None,
            truth_points_m=truth[1] if truth else None,
            warnings=warnings,
        )

    def poses(self, token: str) -> Poses:
        """The vehicle at the key sweep of a sample."""
        key = self._exposure(token, LIDAR)
        return Poses(ego_from_lidar_44=key.sensor.ego_from_sensor_44, global_from_ego_44=self._global_from_ego(key))

    def truth(self, token: str) -> tuple[Boxes, NDArray[np.int64]] | None:
        """Boxes of the ten classes in the LiDAR frame with LiDAR plus radar returns per box; None in a test set."""
        if not self.tables.annotations:
            return None
        rows = [a for a in self.tables.annotations_of.get(token, []) if a.label >= 0]
        lidar_from_global = inverse(self.poses(token).global_from_lidar_44)
        geometry_m9 = np.array([self._box(a, lidar_from_global) for a in rows], np.float32).reshape(-1, 9)
        boxes = Boxes(
            geometry_m9=geometry_m9,
            labels_m=np.array([a.label for a in rows], np.int64),
            scores_m=np.ones(len(rows), np.float32),
        )
        return boxes, np.array([a.points for a in rows], np.int64)

    def velocity(self, annotation_token: str) -> NDArray[np.float64]:
        """Global velocity [3] in m/s from the neighbouring annotations, NaN where there is none near in time."""
        here = self._annotation(annotation_token)
        if not here.previous and not here.next:
            return np.full(3, np.nan)
        first = self._annotation(here.previous) if here.previous else here
        last = self._annotation(here.next) if here.next else here
        seconds = 1e-6 * (self._sample(last.sample).timestamp - self._sample(first.sample).timestamp)
        longest = MAX_TIME_DIFFERENCE * (2 if here.previous and here.next else 1)
        if not 0 < seconds <= longest:
            return np.full(3, np.nan)
        moved: NDArray[np.float64] = np.array(last.translation) - np.array(first.translation)
        return moved / seconds

    def _box(self, row: Annotation, lidar_from_global: NDArray[np.float64]) -> list[float]:
        box_44 = lidar_from_global @ rigid(row.rotation, row.translation, f"sample_annotation {row.token}")
        width, length, height = row.size
        speed = self.velocity(row.token)
        # As BEVFusion: only the horizontal global motion counts.
        velocity = lidar_from_global[:3, :2] @ speed[:2]
        yaw = np.arctan2(box_44[1, 0], box_44[0, 0])
        return [*box_44[:3, 3], length, width, height, yaw, velocity[0], velocity[1]]

    def _points(self, token: str) -> NDArray[np.float32]:
        """Key sweep and earlier ones in the key sweep's frame: x, y, z, intensity, lag [P, 5]."""
        key = self._exposure(token, LIDAR)
        lidar_from_global = inverse(self.poses(token).global_from_lidar_44)
        current, parts = key, []
        for index in range(self.sweeps):
            raw_p4 = read_sweep(self.root / current.filename)
            if index:
                raw_p4 = raw_p4[_far(raw_p4)]
            points_p5 = np.empty((len(raw_p4), 5), np.float32)
            points_p5[:, 3] = raw_p4[:, 3]
            points_p5[:, 4] = 1e-6 * (key.timestamp - current.timestamp)
            if index:
                moved = lidar_from_global @ self._global_from_ego(current) @ current.sensor.ego_from_sensor_44
                points_p5[:, :3] = raw_p4[:, :3] @ moved[:3, :3].T + moved[:3, 3]
            else:
                points_p5[:, :3] = raw_p4[:, :3]
            parts.append(points_p5)
            if not current.previous:
                break
            current = self._by_token(current.previous)
        if self.repeat_key and len(parts) == 1:
            parts += [parts[0][_far(parts[0])]] * (self.sweeps - 1)
        return np.concatenate(parts)

    def _calibration(self, token: str, image_hw: tuple[int, int]) -> Calibration:
        global_from_lidar = self.poses(token).global_from_lidar_44
        intrinsics, transforms = [], []
        for name in CAMERAS:
            item = self._exposure(token, name)
            intrinsics.append(item.sensor.intrinsics_33)
            # Through the global frame: the vehicle moves between the two exposures.
            camera_from_global = inverse(self._global_from_ego(item) @ item.sensor.ego_from_sensor_44)
            transforms.append(camera_from_global @ global_from_lidar)
        return Calibration(
            camera_names=CAMERAS,
            intrinsics_v33=np.array(intrinsics, np.float64),
            camera_from_lidar_v44=np.array(transforms),
            image_hw=image_hw,
        )

    def _scenes_of(self, split: str) -> list[str]:
        suffix = SPLIT_SUFFIX.get(split)
        if suffix is None:
            return self._custom_split(split)
        if not self.version.endswith(suffix):
            raise DataError(
                f"split {split!r} asked of version {self.version!r}",
                expected=f"a version that ends in {suffix!r}",
                remedy="change the split or data.version",
            )
        if suffix == "mini":
            return list(MINI_TRAIN if split == "mini_train" else MINI_VAL)
        from nuscenes.utils.splits import create_splits_scenes

        return list(create_splits_scenes()[split])

    def _custom_split(self, split: str) -> list[str]:
        path = self.root / self.version / "splits.json"
        try:
            custom = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise DataError(
                f"{path} is not valid JSON: {error}",
                expected="an object of lists: names of splits to names of scenes",
                remedy="repair it, or remove it where no split of your own is used",
            ) from error
        if not isinstance(custom, dict) or not isinstance(custom.get(split), list):
            known = [*SPLIT_SUFFIX, *(custom if isinstance(custom, dict) else ())]
            raise DataError(
                f"unknown split {split!r}",
                expected="one of " + ", ".join(known),
                remedy=f"custom splits are read from {path}",
            )
        return [str(name) for name in custom[split]]

    def _sample(self, token: str) -> nuscenes_tables.SampleRecord:
        if token not in self.tables.samples:
            raise DataError(f"no sample {token!r} in {self.root / self.version}", expected="a sample token of this set")
        return self.tables.samples[token]

    def _annotation(self, token: str) -> Annotation:
        if token not in self.tables.annotations:
            raise DataError(
                f"no sample_annotation {token!r}", expected="prev and next links within the table", remedy=_TABLES
            )
        return self.tables.annotations[token]

    def _by_token(self, token: str) -> Exposure:
        if token not in self.tables.exposures:
            raise DataError(
                f"no sample_data {token!r} of {LIDAR}", expected="prev links within the table", remedy=_TABLES
            )
        return self.tables.exposures[token]

    def _exposure(self, token: str, channel: str) -> Exposure:
        self._sample(token)
        found = self.tables.key_exposures.get(token, {}).get(channel)
        if found is None:
            raise DataError(
                f"sample {token} has no key frame of {channel}",
                expected="one sample_data record per camera and LiDAR",
                remedy=_TABLES,
            )
        return found

    def _global_from_ego(self, item: Exposure) -> NDArray[np.float64]:
        pose = self.tables.poses.get(item.pose)
        if pose is None:
            raise DataError(
                f"no ego_pose {item.pose!r}", expected="the pose of every sample_data record", remedy=_TABLES
            )
        return pose.matrix(f"ego_pose {item.pose}")


def _far(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns that are not of the vehicle itself."""
    far: NDArray[np.bool_] = (np.abs(points[:, :2]) >= CLOSE).any(axis=1)
    return far
