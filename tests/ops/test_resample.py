"""Weights of our own against Pillow itself, pixel by pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from altermoma.errors import UnsupportedError
from altermoma.geometry import ImageGeometry
from altermoma.ops import resample
from altermoma.ops.images import resize_crop
from altermoma.ops.resample import PRECISION_BITS, Weights, checked_plan

NUSCENES = ImageGeometry(height=256, width=704, resize=0.48, resample="bicubic")


def apply(images: np.ndarray, weights: Weights, axis: int) -> np.ndarray:
    """Sums along one axis as whole numbers, as the kernels do."""
    images = np.moveaxis(images, axis, 0).astype(np.int64)
    rows = []
    for (first, count), row in zip(weights.bounds_n2, weights.weights_nk, strict=True):
        total = np.tensordot(row[:count].astype(np.int64), images[first : first + count], 1)
        rounded = (total + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS
        rows.append(np.clip(rounded, 0, 255).astype(np.uint8))
    return np.moveaxis(np.stack(rows), 0, axis)


@pytest.mark.parametrize(
    ("native", "image"),
    [
        ((900, 1600), NUSCENES),
        ((900, 1600), dataclasses.replace(NUSCENES, resample="bilinear")),
        ((120, 160), ImageGeometry(height=32, width=64)),
        ((360, 640), ImageGeometry(resample="bicubic")),
        ((400, 300), ImageGeometry(height=96, width=128, resample="bicubic")),
        ((96, 256), ImageGeometry()),
    ],
)
def test_resized_as_pillow_does(native: tuple[int, int], image: ImageGeometry) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, *native, 3), dtype=np.uint8)
    plan = checked_plan(native, image)
    rows = images[:, plan.top : plan.top + plan.height]
    found = apply(apply(rows, plan.columns, 2), plan.rows, 1)
    wanted = images if native == (image.height, image.width) else resize_crop(images, image)
    np.testing.assert_array_equal(found, wanted)


def test_another_pillow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "resize_crop", lambda images, image: resize_crop(images, image) ^ 1)
    with pytest.raises(UnsupportedError, match="1600 x 900"):
        checked_plan((900, 1600), NUSCENES)
