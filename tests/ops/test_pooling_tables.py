"""BEV pooling by tables against lift and index_add, and the frustum against the forward projection."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy_tables import frustum_points

from altermoma.errors import DataError
from altermoma.frames import Calibration
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.ops.functional import pool_bev
from altermoma.ops.images import image_warp
from altermoma.ops.pooling_tables import build_pooling_tables, pixel_rays
from altermoma.ops.prepare import FramePreparer

GEOMETRY = Geometry(image=ImageGeometry(cameras=2, height=32, width=64), depth_bins=(1.0, 21.0, 1.0))


def ring(cameras: int = 2, down: float = 0.0) -> Calibration:
    """Cameras 1.5 m up that look outwards, `down` radians below the horizon; optical axis z, x to the right, y down."""
    tilt = np.array([[1, 0, 0], [0, np.cos(down), np.sin(down)], [0, -np.sin(down), np.cos(down)]])
    poses = []
    for angle in 2 * np.pi * np.arange(cameras) / cameras:
        forward = np.array([np.cos(angle), np.sin(angle), 0.0])
        lidar_from_camera = np.eye(4)
        lidar_from_camera[:3, :3] = np.stack([np.cross(forward, [0, 0, 1]), [0, 0, -1], forward], axis=1) @ tilt
        lidar_from_camera[:3, 3] = [0.3 * np.cos(angle), 0.0, 1.5]
        poses.append(np.linalg.inv(lidar_from_camera))
    intrinsics = np.array([[120.0, 0, 80.0], [0, 120.0, 45.0], [0, 0, 1]])
    return Calibration(
        camera_names=tuple(f"cam{i}" for i in range(cameras)),
        intrinsics_v33=np.stack([intrinsics] * cameras),
        camera_from_lidar_v44=np.stack(poses),
        image_hw=(90, 160),
    )


@pytest.mark.parametrize("resize", [None, 0.6])
def test_pixel_rays_project_back_onto_their_pixels(resize: float | None) -> None:
    calibration = ring()
    geometry = dataclasses.replace(GEOMETRY, image=dataclasses.replace(GEOMETRY.image, resize=resize))
    directions, origins = pixel_rays(calibration, geometry)
    points = directions[..., None, :] * np.arange(1.0, 21.0)[:, None] + origins[:, None, None, None]
    warp = image_warp(calibration.image_hw, geometry.image)
    height, width = GEOMETRY.image.feature_hw
    for view in range(2):
        camera = points[view] @ calibration.camera_from_lidar_v44[view, :3, :3].T
        camera += calibration.camera_from_lidar_v44[view, :3, 3]
        pixel = camera @ calibration.intrinsics_v33[view].T
        np.testing.assert_allclose(pixel[..., 2], np.broadcast_to(np.arange(1.0, 21.0), pixel.shape[:3]), atol=1e-9)
        column = pixel[..., 0] / pixel[..., 2] * warp.scale - warp.left
        row = pixel[..., 1] / pixel[..., 2] * warp.scale - warp.top
        np.testing.assert_allclose(column, np.linspace(0, 63, width)[None, :, None] + 0 * column, atol=1e-6)
        np.testing.assert_allclose(row, np.linspace(0, 31, height)[:, None, None] + 0 * row, atol=1e-6)


@pytest.mark.parametrize(
    ("turn", "down", "geometry"),
    [
        (None, 0.0, GEOMETRY),
        (0.4, 0.0, GEOMETRY),
        (0.4, 0.5, GEOMETRY),
        (None, 0.02, dataclasses.replace(GEOMETRY, fan_in=(256,))),
        (None, 0.02, dataclasses.replace(GEOMETRY, fan_in=(4, 4, 1))),
        (0.4, 0.0, dataclasses.replace(GEOMETRY, image=dataclasses.replace(GEOMETRY.image, resize=0.6))),
    ],
    ids=["plain", "turned", "looking down", "one level", "three levels", "cropped"],
)
def test_pooling_equals_lift_and_index_add(turn: float | None, down: float, geometry: Geometry) -> None:
    calibration, rng = ring(down=down), torch.Generator().manual_seed(0)
    aug = None
    if turn is not None:
        aug = np.eye(4)
        aug[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        aug[:3, 3] = [1.0, -2.0, 0.1]
    height, width = geometry.image.feature_hw
    weights = torch.rand(2, height, width, 20, generator=rng, dtype=torch.float64)
    features = torch.randn(2, height, width, 3, generator=rng, dtype=torch.float64)
    points = torch.from_numpy(frustum_points(calibration, geometry)).double()
    if aug is not None:
        points = points @ torch.from_numpy(aug[:3, :3]).T + torch.from_numpy(aug[:3, 3])
    lifted = weights[..., None] * features[:, :, :, None]
    cell = ((points[..., :2] + 32.0) / 0.8).trunc().long()
    inside = ((cell >= 0) & (cell < 80)).all(-1) & (points[..., 2].abs() < 10.0)
    expected = torch.zeros(6400, 3, dtype=torch.float64)
    expected.index_add_(0, (cell[..., 0] * 80 + cell[..., 1])[inside], lifted[inside])
    tables = build_pooling_tables(calibration, geometry, aug)
    found = pool_bev(weights, features, [torch.from_numpy(table) for table in tables.values()])
    assert expected.abs().sum() > 100
    # A lifted point within float32 rounding of a cell's edge may fall on either side.
    differing = ((found - expected).abs().max(dim=1).values > 1e-9).sum()
    assert differing <= 2


def test_a_calibration_that_puts_everything_in_one_cell_is_refused() -> None:
    calibration = ring()
    poses = calibration.camera_from_lidar_v44.copy()
    intrinsics = calibration.intrinsics_v33 * [[1e6], [1e6], [1]]
    broken = dataclasses.replace(calibration, camera_from_lidar_v44=poses, intrinsics_v33=intrinsics)
    with pytest.raises(DataError, match="lifted pixels"):
        build_pooling_tables(broken, dataclasses.replace(GEOMETRY, fan_in=(2, 2)))


@pytest.mark.parametrize("matrix", ["intrinsics_v33", "camera_from_lidar_v44"])
def test_a_calibration_without_an_inverse_is_refused(matrix: str) -> None:
    calibration = ring()
    zeroed = getattr(calibration, matrix).copy()
    zeroed[1] = 0
    with pytest.raises(DataError, match="has no inverse"):
        build_pooling_tables(dataclasses.replace(calibration, **{matrix: zeroed}), GEOMETRY)


def test_tables_follow_a_calibration_that_is_written_in_place() -> None:
    calibration = ring()
    preparer, frame = FramePreparer(GEOMETRY), (np.zeros((2, 90, 160, 3), np.uint8), np.zeros((1, 5), np.float32))
    before = preparer.prepare_parts(*frame, calibration)
    assert preparer.prepare_parts(*frame, calibration)["pool_depth"] is before["pool_depth"]
    calibration.camera_from_lidar_v44[:] = ring(down=0.3).camera_from_lidar_v44
    found, expected = preparer.prepare_parts(*frame, calibration), build_pooling_tables(calibration, GEOMETRY)
    assert not np.array_equal(before["pool_depth"], expected["pool_depth"])
    for name, table in expected.items():
        np.testing.assert_array_equal(found[name], table, err_msg=name)
