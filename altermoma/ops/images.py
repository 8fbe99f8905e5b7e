"""Native camera images to network images: resize to the network's width, crop rows from the top, normalise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from altermoma.errors import DataError
from altermoma.geometry import ImageGeometry


@dataclass(frozen=True, kw_only=True)
class ImageWarp:
    """network pixel = native pixel * scale - (0, top)."""

    scale: float
    resized_hw: tuple[int, int]
    top: int


def image_warp(native_hw: tuple[int, int], image: ImageGeometry) -> ImageWarp:
    """Fits the native width to the network's and keeps the bottom rows (the sky carries no objects)."""
    scale = image.width / native_hw[1]
    resized_height = round(native_hw[0] * scale)
    top = resized_height - image.height
    if top < 0:
        raise DataError(
            f"camera images of {native_hw[1]} x {native_hw[0]} pixels",
            expected=f"an aspect ratio of at most {image.width} : {image.height}",
            remedy="use images that are taller, or a model with another image size",
        )
    return ImageWarp(scale=scale, resized_hw=(resized_height, image.width), top=top)


def resize_crop(images_vhw3: NDArray[np.uint8], image: ImageGeometry) -> NDArray[np.uint8]:
    """uint8 [V, native height, native width, 3] -> uint8 [V, H, W, 3]."""
    warp = image_warp((images_vhw3.shape[1], images_vhw3.shape[2]), image)
    height, width = warp.resized_hw
    native_height, native_width = images_vhw3.shape[1:3]
    # Rows that would be cropped are not resampled at all.
    kept = (0.0, warp.top * native_height / height, float(native_width), float(native_height))
    resized = [
        np.asarray(Image.fromarray(picture).resize((width, height - warp.top), Image.Resampling.BILINEAR, kept))
        for picture in images_vhw3
    ]
    return np.stack(resized)


def normalise(images_vhw3: NDArray[np.uint8], image: ImageGeometry) -> NDArray[np.float32]:
    """uint8 RGB [V, H, W, 3] -> float32 [V, 3, H, W], zero mean and unit deviation per channel."""
    scale = (1.0 / np.asarray(image.std, np.float32))[:, None, None]
    shift = (np.asarray(image.mean, np.float32))[:, None, None]
    planes_v3hw = np.ascontiguousarray(images_vhw3.transpose(0, 3, 1, 2))
    normalised: NDArray[np.float32] = (planes_v3hw.astype(np.float32) - shift) * scale
    return normalised
