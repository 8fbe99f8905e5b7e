"""Rigid transforms of nuScenes records: quaternions (w, x, y, z) and translations in metres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError


def rotation_matrix(quaternion: Sequence[float]) -> NDArray[np.float64]:
    """Rotation matrix [3, 3] of a quaternion (w, x, y, z), normalised first."""
    w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_product(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, float]:
    """Hamilton product of two quaternions (w, x, y, z): first `b`, then `a`."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def rigid(rotation: Sequence[float], translation: Sequence[float], source: str) -> NDArray[np.float64]:
    """Transform [4, 4] of a record's rotation and translation; `source` names the record in errors.

    Raises:
        DataError: not 4 and 3 finite numbers, or a quaternion of length zero.
    """
    numbers = checked(rotation, (4,), f"rotation of {source}")
    if not 0.9 < float(np.linalg.norm(numbers)) < 1.1:
        raise DataError(
            f"rotation of {source} is {list(rotation)}",
            expected="a unit quaternion (w, x, y, z)",
            remedy="repair the table or download it again",
        )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrix(rotation)
    matrix[:3, 3] = checked(translation, (3,), f"translation of {source}")
    return matrix


def checked(values: object, shape: tuple[int, ...], source: str) -> NDArray[np.float64]:
    """`values` as float64 of `shape`, or a DataError that names `source`."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise _wrong(f"{source} is {values!r}", shape) from error
    if array.shape != shape:
        raise _wrong(f"{source} has shape {array.shape}", shape)
    if not np.isfinite(array).all():
        raise _wrong(f"{source} is {array.tolist()}", shape)
    return array


def _wrong(found: str, shape: tuple[int, ...]) -> DataError:
    return DataError(
        found, expected=f"finite numbers of shape {shape}", remedy="repair the calibration table or download it again"
    )


def inverse(transform_44: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of a rigid transform [4, 4], exactly rigid again."""
    result = np.eye(4)
    result[:3, :3] = transform_44[:3, :3].T
    result[:3, 3] = -transform_44[:3, :3].T @ transform_44[:3, 3]
    return result
