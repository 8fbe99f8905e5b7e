"""Resizing, cropping, normalising; the depth image against the devkit's projection."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from synthetic_inputs import random_points, ring_calibration

from altermoma.errors import DataError
from altermoma.geometry import ImageGeometry
from altermoma.ops.depth_image import depth_images
from altermoma.ops.images import image_warp, normalise, resize_crop

IMAGE = ImageGeometry(cameras=1)


def noisy_picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (1, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("native", "image"),
    [
        ((360, 640), IMAGE),
        ((900, 1600), IMAGE),
        ((97, 256), IMAGE),
        ((900, 1600), ImageGeometry(height=256, width=704, resize=0.48)),
        ((900, 1600), ImageGeometry(height=256, width=704, resize=0.48, resample="bicubic")),
    ],
)
def test_resize_crop_equals_resizing_everything_and_cropping(native: tuple[int, int], image: ImageGeometry) -> None:
    picture = noisy_picture(*native)
    warp = image_warp(native, image)
    # Pillow's own default, which is what mmdet3d's ImageAug3D takes, is bicubic.
    chosen = Image.Resampling.BILINEAR if image.resample == "bilinear" else None
    whole = Image.fromarray(picture[0]).resize(warp.resized_hw[::-1], chosen)
    expected = np.asarray(whole)[warp.top :, warp.left : warp.left + image.width].astype(int)
    found = resize_crop(picture, image)[0].astype(int)
    assert found.shape == (image.height, image.width, 3)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 1e-3


def test_bevfusions_crop() -> None:
    warp = image_warp((900, 1600), ImageGeometry(height=256, width=704, resize=0.48))
    assert (warp.scale, warp.resized_hw, warp.left, warp.top) == (0.48, (432, 768), 32, 176)


def test_too_wide_a_picture_is_refused() -> None:
    with pytest.raises(DataError, match="aspect ratio"):
        resize_crop(np.zeros((1, 90, 640, 3), np.uint8), IMAGE)
    with pytest.raises(DataError, match="640 x 480 after resizing"):
        resize_crop(np.zeros((1, 960, 1280, 3), np.uint8), ImageGeometry(height=256, width=704, resize=0.5))


def test_normalise_is_per_channel() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    found = normalise(picture, IMAGE)
    expected = (picture.astype(np.float64) - IMAGE.mean) / IMAGE.std
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_depth_lands_where_the_point_projects() -> None:
    image = ImageGeometry(cameras=6)
    calibration, points = ring_calibration(), random_points(500)
    found = depth_images(points, calibration, image)
    warp = image_warp(calibration.image_hw, image)
    expected = np.zeros_like(found)
    for view in range(6):
        for point in points:
            camera = calibration.camera_from_lidar_v44[view] @ np.append(point[:3], 1.0)
            if camera[2] <= 1e-3:
                continue
            u, v, _ = calibration.intrinsics_v33[view] @ camera[:3] / camera[2]
            column, row = int(np.floor(u * warp.scale)), int(np.floor(v * warp.scale - warp.top))
            if 0 <= column < image.width and 0 <= row < image.height:
                expected[view, 0, row, column] = camera[2]
    assert (expected > 0).sum() > 100
    # Float32 against float64: a point on a pixel's edge may change the pixel.
    assert (np.abs(found - expected) > 1e-3).sum() <= 4
