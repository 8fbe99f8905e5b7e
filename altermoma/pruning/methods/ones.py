"""A frame without data: pictures and depth of ones, and a voxel grid without a hole."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from altermoma.frames import Calibration
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.models.batch import FrameBatch, collate
from altermoma.ops.prepare import FramePreparer

CELLS = 8
"""Cells of the head's map along each axis: enough that most see all their neighbours."""
FEATURES = frozenset({"images", "depth", "voxels", "points"})
"""Graph inputs that carry values; all others are tables."""


def small_geometry(geometry: Geometry) -> Geometry:
    """The same layers on a small range with two small pictures: no weight's shape depends on either."""
    reach = (CELLS << geometry.lidar_levels) * geometry.head_stride * geometry.voxel_size[0] / 2
    low, high = geometry.point_range[2], geometry.point_range[5]
    small = dataclasses.replace(
        geometry,
        image=dataclasses.replace(geometry.image, cameras=2, height=64, width=96, resize=None),
        point_range=(-reach, -reach, low, reach, reach, high),
        level_rows=(),
    )
    return dataclasses.replace(small, max_voxels=math.prod(small.sparse_shape))


def all_ones(geometry: Geometry) -> FrameBatch:
    """One frame, float64: a point in every voxel, cameras that look outwards, every value 1."""
    image = geometry.image
    pictures = np.zeros((image.cameras, image.height, image.width, 3), np.uint8)
    frame = FramePreparer(geometry).prepare_parts(pictures, _full_grid(geometry), _ring_of_cameras(image))
    batch = collate([frame], geometry)
    tensors = {
        name: torch.ones_like(tensor, dtype=torch.float64) if name in FEATURES else tensor
        for name, tensor in batch.tensors.items()
    }
    return FrameBatch(tensors=tensors, size=1)


def _full_grid(geometry: Geometry) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The centre of every voxel as a point [N, 5]."""
    low, high = np.array(geometry.point_range[:3]), np.array(geometry.point_range[3:])
    counts = np.round((high - low) / geometry.voxel_size).astype(int)
    axes = [l + (np.arange(n) + 0.5) * s for l, n, s in zip(low, counts, geometry.voxel_size, strict=True)]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.pad(centres, ((0, 0), (0, geometry.point_features - 3))).astype(np.float32)


def _ring_of_cameras(image: ImageGeometry) -> Calibration:
    """Cameras at the LiDAR's origin, 90 degrees wide, evenly turned."""
    matrices = []
    for view in range(image.cameras):
        yaw = 2 * math.pi * view / image.cameras
        ahead, left = np.array([math.cos(yaw), math.sin(yaw), 0.0]), np.array([-math.sin(yaw), math.cos(yaw), 0.0])
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([-left, [0.0, 0.0, -1.0], ahead])
        matrices.append(matrix)
    focal = image.width / 2
    intrinsics = np.array([[focal, 0.0, image.width / 2], [0.0, focal, image.height / 2], [0.0, 0.0, 1.0]])
    return Calibration(
        camera_names=tuple(f"camera {view}" for view in range(image.cameras)),
        intrinsics_v33=np.repeat(intrinsics[None], image.cameras, axis=0),
        camera_from_lidar_v44=np.stack(matrices),
        image_hw=(image.height, image.width),
    )
