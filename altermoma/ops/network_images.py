"""Native pictures to normalised network images on the CPU, in one go and to the bit as Pillow resizes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError, UnsupportedError
from altermoma.geometry import ImageGeometry
from altermoma.ops import image_kernels as kernels
from altermoma.ops.image_kernels import BYTES, LANES, TAPS
from altermoma.ops.images import colour, normalise, resize_crop
from altermoma.ops.recycled import RecycledMemory
from altermoma.ops.resample import ResizePlan, Weights, checked_plan

Pictures = NDArray[np.uint8]


class NetworkImages:
    """`normalise(resize_crop(pictures))`, four to five times as fast. Holds its room, so make one per thread.

    Where the Pillow at hand resizes in another way than the weights of `altermoma.ops.resample`, as it does with
    pictures that grow, it is Pillow that resizes.
    """

    def __init__(self, image: ImageGeometry) -> None:
        self._image = image
        self._memory = RecycledMemory()
        self._resizers: dict[tuple[int, int], _Resizer | None] = {}

    def __call__(self, pictures_vhw3: Pictures) -> NDArray[np.float32]:
        """uint8 RGB [V, native height, native width, 3] -> float32 [V, 3, H, W]; of the network's size as they are.

        Raises:
            DataError: pictures of another type.
        """
        if pictures_vhw3.dtype != np.uint8:
            # The kernels take the memory for bytes: wider numbers would be written past their room.
            raise DataError(
                f"pictures of {pictures_vhw3.dtype}",
                expected="uint8 RGB, 0 to 255, not normalised",
                remedy="give the camera's own 8 bits, or scale to 0 to 255 and convert with .astype(numpy.uint8)",
            )
        image, native_hw = self._image, (pictures_vhw3.shape[1], pictures_vhw3.shape[2])
        if native_hw == (image.height, image.width):
            return normalise(pictures_vhw3, image)
        if native_hw not in self._resizers:
            self._resizers[native_hw] = _resizer(native_hw, image)
        resizer = self._resizers[native_hw]
        if resizer is None:
            return normalise(resize_crop(pictures_vhw3, image), image)
        planes = self._memory.empty((len(pictures_vhw3), 3, image.height, image.width), np.float32)
        for picture, of in zip(pictures_vhw3, planes, strict=True):
            resizer.resize(picture, of)
        return planes


def _resizer(native_hw: tuple[int, int], image: ImageGeometry) -> _Resizer | None:
    try:
        return _Resizer(checked_plan(native_hw, image), native_hw[1], image)
    except UnsupportedError:
        return None


class _Resizer:
    """The kernels with their weights and their room, for pictures of one size."""

    def __init__(self, plan: ResizePlan, native_width: int, image: ImageGeometry) -> None:
        self._plan = plan
        self._column_firsts, self._column_weights = _in_passes(plan.columns)
        self._row_firsts, self._row_weights = _in_passes(plan.rows)
        self._colour = np.stack(colour(image))
        # Weights of zero that fill the last pass read behind the last pixel.
        spare = 3 * (self._column_weights.shape[1] - 1)
        self._words = _words(3 * native_width)
        self._lanes = np.zeros((self._words * BYTES + spare, LANES // BYTES), np.uint64)
        across = _words(3 * image.width)
        self._sums = np.zeros((across * BYTES, LANES // BYTES), np.uint64)
        blocks = -(-plan.height // LANES)
        self._rows = np.zeros((blocks * LANES + self._row_weights.shape[1] - 1, across), np.uint64)
        self._lane_total, self._row_total = np.empty(LANES, np.int32), np.empty(3 * image.width, np.int32)

    def resize(self, picture_hw3: Pictures, planes_3hw: NDArray[np.float32]) -> None:
        """Writes the picture's normalised planes."""
        source = self._as_words(picture_hw3[self._plan.top : self._plan.top + self._plan.height])
        for first in range(0, self._plan.height, LANES):
            kernels.to_lanes(source, first, self._lanes)
            kernels.sum_columns(
                self._lanes.view(np.uint8),
                self._column_firsts,
                self._column_weights,
                self._sums.view(np.uint8),
                self._lane_total,
            )
            kernels.from_lanes(self._sums, first, self._rows)
        kernels.sum_rows(
            self._rows.view(np.uint8), self._row_firsts, self._row_weights, self._colour, planes_3hw, self._row_total
        )

    def _as_words(self, rows_hw3: Pictures) -> NDArray[np.uint64]:
        """Rows in whole words: the same memory where their length allows it."""
        flat = np.require(rows_hw3, requirements=["C", "W"]).reshape(len(rows_hw3), -1)
        if flat.shape[1] % BYTES or flat.ctypes.data % BYTES:
            whole = np.zeros((len(flat), self._words * BYTES), np.uint8)
            whole[:, : flat.shape[1]] = flat
            flat = whole
        return flat.view(np.uint64)


def _words(size: int) -> int:
    """Words that hold so many bytes."""
    return -(-size // BYTES)


def _in_passes(weights: Weights) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """First input pixel of each output pixel, and its weights filled up with zeros to whole passes."""
    missing = -weights.weights_nk.shape[1] % TAPS
    return np.ascontiguousarray(weights.bounds_n2[:, 0]), np.pad(weights.weights_nk, ((0, 0), (0, missing)))
