"""Arrays as drivers hand them over: read-only, in other orders and precisions, with the same result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from synthetic_inputs import random_points, ring_calibration

from altermoma.frames import Calibration
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.ops.prepare import FramePreparer

VOXELS = Geometry(image=ImageGeometry(height=32, width=64), depth_bins=(1.0, 5.0, 1.0))
PILLARS = dataclasses.replace(
    VOXELS, lidar="pillars", voxel_size=(0.4, 0.4, 6.0), lidar_levels=0, head_stride=2, pool_cell=0.4
)


def as_float32(calibration: Calibration) -> Calibration:
    return dataclasses.replace(
        calibration,
        intrinsics_v33=calibration.intrinsics_v33.astype(np.float32),
        camera_from_lidar_v44=calibration.camera_from_lidar_v44.astype(np.float32),
    )


@pytest.mark.parametrize("geometry", [VOXELS, PILLARS], ids=["voxels", "pillars"])
@pytest.mark.parametrize(
    "handed_over",
    [
        lambda points: np.frombuffer(points.tobytes(), np.float32).reshape(-1, 5),
        np.asfortranarray,
        lambda points: np.hstack([points, points])[:, :5],
        lambda points: points.astype(np.float64),
    ],
    ids=["read-only", "by column", "strided", "double"],
)
def test_points_in_any_memory(geometry: Geometry, handed_over: Callable[[np.ndarray], np.ndarray]) -> None:
    images, points = np.zeros((6, 32, 64, 3), np.uint8), random_points(500)
    images.flags.writeable = False
    expected = FramePreparer(geometry).prepare_parts(images, points, ring_calibration())
    found = FramePreparer(geometry).prepare_parts(images, handed_over(points), ring_calibration())
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_calibration_in_single_precision() -> None:
    images, points = np.zeros((6, 32, 64, 3), np.uint8), random_points(500)
    coarse = as_float32(ring_calibration())
    same = dataclasses.replace(
        coarse,
        intrinsics_v33=coarse.intrinsics_v33.astype(np.float64),
        camera_from_lidar_v44=coarse.camera_from_lidar_v44.astype(np.float64),
    )
    found, expected = (FramePreparer(VOXELS).prepare_parts(images, points, each) for each in (coarse, same))
    for name in ("pool_depth", "pool_sum_1", "pool_sum_2"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    # Points within rounding of a pixel's edge may change the pixel.
    assert (np.abs(found["depth"].astype(float) - expected["depth"].astype(float)) > 1e-3).sum() <= 4
