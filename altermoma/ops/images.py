"""Native camera images to network images: resize to the network's width, crop rows from the top, normalise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from altermoma.errors import DataError
from altermoma.geometry import ImageGeometry

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_FILTER_REACH = 2
"""Output pixels that Pillow's bicubic filter reaches on either side when it shrinks."""


@dataclass(frozen=True, kw_only=True)
class ImageWarp:
    """network pixel = native pixel * scale - (left, top)."""

    scale: float
    resized_hw: tuple[int, int]
    left: int
    top: int


def image_warp(native_hw: tuple[int, int], image: ImageGeometry) -> ImageWarp:
    """Resizes, then keeps the bottom rows (the sky carries no objects) and the middle columns."""
    if image.resize is None:
        scale = image.width / native_hw[1]
        height, width = round(native_hw[0] * scale), image.width
    else:
        scale = image.resize
        height, width = int(native_hw[0] * scale), int(native_hw[1] * scale)
    top, left = height - image.height, (width - image.width) // 2
    if top < 0 or left < 0:
        raise DataError(
            f"camera images of {native_hw[1]} x {native_hw[0]} pixels, {width} x {height} after resizing",
            expected=f"an aspect ratio of at most {image.width} : {image.height}"
            if image.resize is None
            else f"at least {image.width} x {image.height}",
            remedy="use images that are taller, or a model with another image size",
        )
    return ImageWarp(scale=scale, resized_hw=(height, width), left=left, top=top)


def resize_crop(images_vhw3: NDArray[np.uint8], image: ImageGeometry) -> NDArray[np.uint8]:
    """uint8 [V, native height, native width, 3] -> uint8 [V, H, W, 3]; the same as resizing everything and cropping."""
    native_height, native_width = images_vhw3.shape[1:3]
    warp = image_warp((native_height, native_width), image)
    height, width = warp.resized_hw
    # Pixels that would be cropped are not resampled, but for those that the filter of the outermost kept ones reaches.
    left, top = max(warp.left - _FILTER_REACH, 0), max(warp.top - _FILTER_REACH, 0)
    right = min(warp.left + image.width + _FILTER_REACH, width)
    box = (
        left * native_width / width,
        top * native_height / height,
        right * native_width / width,
        float(native_height),
    )
    size, resample = (right - left, height - top), _FILTERS[image.resample]
    pictures = [np.asarray(Image.fromarray(picture).resize(size, resample, box)) for picture in images_vhw3]
    resized: NDArray[np.uint8] = np.stack(pictures)
    return resized[:, warp.top - top :, warp.left - left : warp.left - left + image.width]


def normalise(images_vhw3: NDArray[np.uint8], image: ImageGeometry) -> NDArray[np.float32]:
    """uint8 RGB [V, H, W, 3] -> float32 [V, 3, H, W], zero mean and unit deviation per channel."""
    scale = (1.0 / np.asarray(image.std, np.float32))[:, None, None]
    shift = (np.asarray(image.mean, np.float32))[:, None, None]
    planes_v3hw = np.ascontiguousarray(images_vhw3.transpose(0, 3, 1, 2))
    normalised: NDArray[np.float32] = (planes_v3hw.astype(np.float32) - shift) * scale
    return normalised
