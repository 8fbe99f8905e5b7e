"""From ranges to the numbers that a quantiser needs, and rounding by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

LARGEST = 127
"""Of a signed int8 number that is symmetric about zero: -128 is left out, as TensorRT leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a tensor's numbers are rounded within: `low` <= 0 <= `high`, not both zero."""

    low: float
    high: float

    def united(self, other: Range) -> Range:
        return Range(low=min(self.low, other.low), high=max(self.high, other.high))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """real = scale * (integer - zero_point); float32 and int8 or uint8."""

    scale: np.float32
    zero_point: np.int8 | np.uint8


def signed_scale(found: Range) -> Scale:
    """int8 with zero point 0: what TensorRT takes."""
    return Scale(scale=np.float32(max(-found.low, found.high) / LARGEST), zero_point=np.int8(0))


def unsigned_scale(found: Range) -> Scale:
    """uint8 over the whole range, with zero itself among the numbers: what ONNX Runtime's CPU kernels are fast with."""
    scale = np.float32((found.high - found.low) / 255)
    return Scale(scale=scale, zero_point=np.uint8(np.clip(np.rint(-found.low / scale), 0, 255)))


def weight_scales(weight: Floats, axis: int) -> NDArray[np.float32]:
    """Symmetric scale per output channel; 1 for a channel of zeros, which stays exactly zero."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight.astype(np.float64)).max(axis=others, initial=0.0)
    scales: NDArray[np.float32] = np.where(largest > 0, largest / LARGEST, 1.0).astype(np.float32)
    # The smallest normal number: what is divided by less overflows.
    return np.maximum(scales, np.finfo(np.float32).tiny)


def rounded_weight(weight: Floats, scales_c: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """int8 weights; zeros stay zeros, so that a 2:4 pattern stays one."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    numbers = np.rint(weight.astype(np.float64) / scales_c.astype(np.float64).reshape(shape))
    return np.clip(numbers, -LARGEST, LARGEST).astype(np.int8)


def rounded_bias(bias: Floats, data_scale: np.float32, scales_c: NDArray[np.float32]) -> NDArray[np.int32]:
    """int32 biases in units of data scale x weight scale, as int8 kernels add them."""
    unit = np.float64(data_scale) * scales_c.astype(np.float64)
    limit = np.iinfo(np.int32)
    return np.clip(np.rint(bias.astype(np.float64) / unit), limit.min, limit.max).astype(np.int32)


def rounded(values: Floats, scale: Scale) -> NDArray[np.int8] | NDArray[np.uint8]:
    """As QuantizeLinear rounds: half to even, then clipped to the type."""
    kind = scale.zero_point.dtype
    limit = np.iinfo(kind)
    numbers = np.rint(values.astype(np.float32) / scale.scale) + np.float32(scale.zero_point)
    return np.clip(numbers, limit.min, limit.max).astype(kind)  # type: ignore[no-any-return]
