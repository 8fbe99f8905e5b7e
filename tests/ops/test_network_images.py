"""Resizing and normalising in one go against Pillow and numpy, bit by bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from altermoma.errors import DataError
from altermoma.geometry import ImageGeometry
from altermoma.ops import image_kernels as kernels
from altermoma.ops import resample
from altermoma.ops.images import normalise, resize_crop
from altermoma.ops.network_images import NetworkImages

NUSCENES = ImageGeometry(height=256, width=704, resize=0.48, resample="bicubic")
TINY = ImageGeometry(height=32, width=64)


def pictures(native: tuple[int, int], views: int = 2) -> np.ndarray:
    """Noise, with a saturated corner: bicubic sums leave the range of 8 bits there."""
    made = np.random.default_rng(0).integers(0, 256, (views, *native, 3), dtype=np.uint8)
    made[:, -40:, :40] = np.random.default_rng(1).integers(0, 2, (views, 40, 40, 3), dtype=np.uint8) * 255
    return made


@pytest.mark.parametrize(
    ("native", "image"),
    [
        ((900, 1600), NUSCENES),
        ((900, 1600), dataclasses.replace(NUSCENES, resample="bilinear")),
        ((120, 160), TINY),
        ((360, 640), ImageGeometry(resample="bicubic")),
        # Rows of pixels that are no whole number of words, before and after.
        ((401, 333), ImageGeometry(height=96, width=130, resample="bicubic")),
        # Pictures that grow, which Pillow resizes in another order; and those that have the network's size.
        ((60, 90), ImageGeometry(height=64, width=128, resample="bicubic")),
        ((96, 256), ImageGeometry()),
    ],
)
def test_the_same_bits_as_pillow(native: tuple[int, int], image: ImageGeometry) -> None:
    native_images = pictures(native)
    same = native == (image.height, image.width)
    wanted = normalise(native_images if same else resize_crop(native_images, image), image)
    prepare = NetworkImages(image)
    for _ in range(2):
        np.testing.assert_array_equal(prepare(native_images), wanted)


def test_any_memory_will_do() -> None:
    native_images = pictures((120, 160))
    wanted = NetworkImages(TINY)(native_images)
    message = np.frombuffer(b"." + native_images.tobytes(), np.uint8)[1:].reshape(native_images.shape)
    assert not message.flags.writeable
    np.testing.assert_array_equal(NetworkImages(TINY)(message), wanted)
    mirrored = np.ascontiguousarray(native_images[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_array_equal(NetworkImages(TINY)(mirrored), wanted)


@pytest.mark.parametrize("kind", [np.float32, np.uint16, np.int8, np.bool_])
@pytest.mark.parametrize("native", [(120, 160), (32, 64)], ids=["resized", "of the network's size"])
def test_only_bytes_are_pictures(kind: type, native: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=rf"pictures of {np.dtype(kind)}[\s\S]*uint8"):
        NetworkImages(TINY)(np.zeros((2, *native, 3), kind))


def test_frames_do_not_share_memory_while_both_are_held() -> None:
    prepare = NetworkImages(TINY)
    first = prepare(pictures((120, 160)))
    kept = first.copy()
    prepare(255 - pictures((120, 160)))
    np.testing.assert_array_equal(first, kept)


def test_another_pillow_resizes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    inverted = lambda images, image: resize_crop(images, image) ^ 255  # noqa: E731
    monkeypatch.setattr(resample, "resize_crop", inverted)
    monkeypatch.setattr("altermoma.ops.network_images.resize_crop", inverted)
    native_images = pictures((120, 160))
    wanted = normalise(resize_crop(native_images, TINY) ^ 255, TINY)
    np.testing.assert_array_equal(NetworkImages(TINY)(native_images), wanted)


def test_lanes_are_the_rows_turned() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (70, 24), dtype=np.uint8)
    lanes = np.zeros((24, kernels.LANES // 8), np.uint64)
    kernels.to_lanes(rows.view(np.uint64), 64, lanes)
    expected = rows[np.minimum(np.arange(64, 64 + kernels.LANES), 69)].T
    np.testing.assert_array_equal(lanes.view(np.uint8), expected)
    back = np.zeros((kernels.LANES, 3), np.uint64)
    kernels.from_lanes(lanes, 0, back)
    np.testing.assert_array_equal(back.view(np.uint8), expected.T)
