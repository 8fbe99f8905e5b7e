"""Graph inputs of a made-up frame: a ring of cameras and random points."""

from __future__ import annotations

import numpy as np

from altermoma.frames import Calibration
from altermoma.geometry import Geometry
from altermoma.ops.prepare import FramePreparer, StageInputs


def ring_calibration(cameras: int = 6, image_hw: tuple[int, int] = (360, 640)) -> Calibration:
    """Cameras 1.5 m up that look outwards; optical axis z, x to the right, y down."""
    poses = []
    for angle in 2 * np.pi * np.arange(cameras) / cameras:
        forward = np.array([np.cos(angle), np.sin(angle), 0.0])
        lidar_from_camera = np.eye(4)
        lidar_from_camera[:3, :3] = np.stack([np.cross(forward, [0, 0, 1]), [0, 0, -1], forward], axis=1)
        poses.append(np.linalg.inv(lidar_from_camera))
    focal, (height, width) = 0.79 * image_hw[1], image_hw
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Calibration(
        camera_names=tuple(f"CAM_{i}" for i in range(cameras)),
        intrinsics_v33=np.stack([intrinsics] * cameras),
        camera_from_lidar_v44=np.stack(poses),
        image_hw=image_hw,
    )


def random_points(count: int, seed: int = 0) -> np.ndarray:
    """A cloud around the sensor: float32 [P, 5]."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 1, (count, 5)) * [12, 12, 0.8, 30, 0.1]
    return points.astype(np.float32)


def random_inputs(geometry: Geometry, *, seed: int = 0, points: int = 600) -> StageInputs:
    """Graph inputs of one frame with random pictures and points."""
    image = geometry.image
    pictures = np.random.default_rng(seed).integers(0, 255, (image.cameras, image.height, image.width, 3), np.uint8)
    return FramePreparer(geometry).prepare_parts(pictures, random_points(points, seed), ring_calibration(image.cameras))
