"""The weights with which Pillow resizes 8-bit images, so that a GPU gets the very same pixels.

Pillow works along rows, rounds to 8 bits, then works along columns; every weight is a whole number of 2^-22. Newer
versions begin with the columns where that is less work, which is when images grow; so a plan is held against the Pillow
at hand before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import UnsupportedError
from altermoma.geometry import ImageGeometry
from altermoma.ops.images import crop_box, resize_crop

PRECISION_BITS = 22
_PATCH = 16
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How each output pixel is summed: `bounds_n2` first input pixel and their number, `weights_nk` in 2^-22."""

    bounds_n2: NDArray[np.int32]
    weights_nk: NDArray[np.int32]

    def part(self, begin: int, count: int) -> Weights:
        """Some of the output pixels."""
        chosen = slice(begin, begin + count)
        return Weights(bounds_n2=self.bounds_n2[chosen], weights_nk=self.weights_nk[chosen])


@dataclass(frozen=True, kw_only=True)
class ResizePlan:
    """Native images to network images: `columns` along rows, then `rows` along columns, counted from native row `top`.

    `height` rows from `top` on are needed.
    """

    columns: Weights
    rows: Weights
    top: int
    height: int


def pillow_weights(
    size: int, out_size: int, box: tuple[float, float], resample: Literal["bilinear", "bicubic"]
) -> Weights:
    """Weights for one axis of `size` pixels, of which those in `box` become `out_size`."""
    # Pillow's box is in single precision.
    low, high = np.float32(box[0]), np.float32(box[1])
    scale = float(high - low) / out_size
    stretch = max(scale, 1.0)
    support = _SUPPORT[resample] * stretch
    centers = float(low) + (np.arange(out_size) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + support + 0.5).astype(np.int64), size) - first
    taps = np.arange(int(np.ceil(support)) * 2 + 1)
    values = _filter((taps + first[:, None] - centers[:, None] + 0.5) * (1.0 / stretch), resample)
    values[taps >= count[:, None]] = 0.0
    sums = np.zeros(out_size)
    for tap in taps:  # in Pillow's order
        sums += values[:, tap]
    values /= np.where(sums == 0.0, 1.0, sums)[:, None]
    scaled = values * (1 << PRECISION_BITS)
    weights = np.trunc(scaled + np.where(values < 0, -0.5, 0.5)).astype(np.int32)
    return Weights(bounds_n2=np.stack([first, count], axis=1).astype(np.int32), weights_nk=weights)


def resize_plan(native_hw: tuple[int, int], image: ImageGeometry) -> ResizePlan:
    """The weights of `altermoma.ops.images.resize_crop`; images that have the network's size are left as they are."""
    if native_hw == (image.height, image.width):
        columns = pillow_weights(image.width, image.width, (0.0, image.width), "bilinear")
        rows = pillow_weights(image.height, image.height, (0.0, image.height), "bilinear")
    else:
        crop = crop_box(native_hw, image)
        left, top, right, bottom = crop.box
        columns = pillow_weights(native_hw[1], crop.size[0], (left, right), image.resample)
        rows = pillow_weights(native_hw[0], crop.size[1], (top, bottom), image.resample)
        columns, rows = columns.part(crop.left, image.width), rows.part(crop.top, image.height)
    first = int(rows.bounds_n2[:, 0].min())
    last = int(rows.bounds_n2.sum(axis=1).max())
    bounds = rows.bounds_n2 - np.array([first, 0], np.int32)
    return ResizePlan(
        columns=columns, rows=Weights(bounds_n2=bounds, weights_nk=rows.weights_nk), top=first, height=last - first
    )


def checked_plan(native_hw: tuple[int, int], image: ImageGeometry) -> ResizePlan:
    """A plan that gives Pillow's pixels, as a patch of noise shows.

    Raises:
        UnsupportedError: this Pillow resizes such images in another way.
    """
    plan = resize_plan(native_hw, image)
    if native_hw == (image.height, image.width):
        return plan
    noise = np.random.default_rng(0).integers(0, 256, (1, *native_hw, 3), dtype=np.uint8)
    columns, rows = plan.columns.part(0, _PATCH), plan.rows.part(0, _PATCH)
    needed = noise[0, plan.top : plan.top + plan.height]
    found = _summed(_summed(needed.swapaxes(0, 1), columns).swapaxes(0, 1), rows)
    if np.array_equal(found, resize_crop(noise, image)[0, :_PATCH, :_PATCH]):
        return plan
    raise UnsupportedError(
        f"Pillow resizes images of {native_hw[1]} x {native_hw[0]} pixels in another way than the device kernels",
        expected="images that shrink",
        remedy="prepare frames on the host (preparation='host')",
    )


def _summed(pixels: NDArray[np.uint8], weights: Weights) -> NDArray[np.uint8]:
    """Along the first axis, as the kernels do."""
    rows = []
    for (first, count), row in zip(weights.bounds_n2, weights.weights_nk.astype(np.int64), strict=True):
        total = np.tensordot(row[:count], pixels[first : first + count].astype(np.int64), 1)
        rows.append(np.clip((total + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS, 0, 255))
    return np.stack(rows).astype(np.uint8)


def _filter(x: NDArray[np.float64], resample: str) -> NDArray[np.float64]:
    x = np.abs(x)
    if resample == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
