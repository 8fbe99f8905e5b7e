"""One moment of the vehicle as arrays: what goes into a detector and what comes out. numpy only.

Frames: the LiDAR frame of the key sweep unless a name says otherwise. `a_from_b` maps points of frame b to frame a.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES: tuple[str, ...] = (
    "car", "truck", "construction_vehicle", "bus", "trailer",
    "barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone",
)  # fmt: skip
"""Class order of BEVFusion's nuScenes checkpoints; `labels` index into it."""

MAP_CLASSES: tuple[str, ...] = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
"""Class order of BEVFusion's map segmentation; a divider is a road or lane divider. Classes may overlap."""

BLACK_LEVEL = 8
"""A camera whose brightest value is at most this (JPEG noise around zero) is dead; night images have lamps."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Where the cameras are. V cameras in the order of `camera_names`.

    Attributes:
        intrinsics_v33: float64, pixels of the native image.
        camera_from_lidar_v44: float64 rigid, includes the ego motion between the two exposures.
        image_hw: native image size in pixels, the same for all cameras.
    """

    camera_names: tuple[str, ...]
    intrinsics_v33: NDArray[np.float64]
    camera_from_lidar_v44: NDArray[np.float64]
    image_hw: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes in the LiDAR frame, ground truth or detections.

    Attributes:
        geometry_m9: float32 [M, 9]: centre x, y, z (gravity centre, m), length, width, height (m; length along
            the heading), yaw (rad, counter-clockwise from +x), velocity x, y (m/s; NaN where unknown).
        labels_m: int64 [M], indices into CLASS_NAMES.
        scores_m: float32 [M]; ones for ground truth.
    """

    geometry_m9: NDArray[np.float32]
    labels_m: NDArray[np.int64]
    scores_m: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels_m)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> Boxes:
        return Boxes(geometry_m9=self.geometry_m9[keep], labels_m=self.labels_m[keep], scores_m=self.scores_m[keep])

    @staticmethod
    def empty() -> Boxes:
        return Boxes(
            geometry_m9=np.zeros((0, 9), np.float32),
            labels_m=np.zeros(0, np.int64),
            scores_m=np.zeros(0, np.float32),
        )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One key frame, as read.

    Attributes:
        token: sample token.
        images_vhw3: uint8 RGB, native size.
        points_p5: float32 x, y, z (m), intensity (0-255), time lag (s, 0 for the key sweep).
        ego_from_lidar_44, global_from_ego_44: float64 rigid.
        truth: annotated boxes, None where there are none to be had (test split).
        truth_points_m: int64 [M], LiDAR plus radar returns inside each true box.
        warnings: what was degraded and carried on with (a dead camera, an empty cloud).
    """

    token: str
    scene: str
    images_vhw3: NDArray[np.uint8]
    points_p5: NDArray[np.float32]
    calibration: Calibration
    ego_from_lidar_44: NDArray[np.float64]
    global_from_ego_44: NDArray[np.float64]
    truth: Boxes | None = None
    truth_points_m: NDArray[np.int64] | None = None
    warnings: tuple[str, ...] = field(default=())
