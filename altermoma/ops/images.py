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


@dataclass(frozen=True, kw_only=True)
class CropBox:
    """What of a native image is resized, and what of the result is kept.

    Pixels that would be cropped are not resampled, but for those that the filter of the outermost kept ones reaches.

    Attributes:
        box: left, top, right, bottom in native pixels.
        size: width, height that the box is resized to.
        left, top: where the network's image begins in that.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    left: int
    top: int


def crop_box(native_hw: tuple[int, int], image: ImageGeometry) -> CropBox:
    """The part of native images that the network sees."""
    native_height, native_width = native_hw
    warp = image_warp(native_hw, image)
    height, width = warp.resized_hw
    left, top = max(warp.left - _FILTER_REACH, 0), max(warp.top - _FILTER_REACH, 0)
    right = min(warp.left + image.width + _FILTER_REACH, width)
    box = (
        left * native_width / width,
        top * native_height / height,
        right * native_width / width,
        float(native_height),
    )
    return CropBox(box=box, size=(right - left, height - top), left=warp.left - left, top=warp.top - top)


def resize_crop(images_vhw3: NDArray[np.uint8], image: ImageGeometry) -> NDArray[np.uint8]:
    """uint8 [V, native height, native width, 3] -> uint8 [V, H, W, 3]; the same as resizing everything and cropping."""
    crop = crop_box((images_vhw3.shape[1], images_vhw3.shape[2]), image)
    resample = _FILTERS[image.resample]
    pictures = [np.asarray(Image.fromarray(picture).resize(crop.size, resample, crop.box)) for picture in images_vhw3]
    resized: NDArray[np.uint8] = np.stack(pictures)
    return resized[:, crop.top :, crop.left : crop.left + image.width]


def colour(image: ImageGeometry) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What is taken off each channel, and what it is multiplied with then."""
    return np.asarray(image.mean, np.float32), 1.0 / np.asarray(image.std, np.float32)


def normalise(images_vhw3: NDArray[np.uint8], image: ImageGeometry) -> NDArray[np.float32]:
    """uint8 RGB [V, H, W, 3] -> float32 [V, 3, H, W], zero mean and unit deviation per channel."""
    shift, scale = (values[:, None, None] for values in colour(image))
    planes_v3hw = np.ascontiguousarray(images_vhw3.transpose(0, 3, 1, 2))
    normalised: NDArray[np.float32] = (planes_v3hw.astype(np.float32) - shift) * scale
    return normalised
