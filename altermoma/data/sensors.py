"""Sensor files to arrays: camera images and LiDAR sweeps, with the errors a user can act on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError
from altermoma.frames import BLACK_LEVEL

_REMEDY = "download or copy the file again; check that the whole archive was unpacked"


def read_image(path: Path) -> tuple[NDArray[np.uint8] | None, str]:
    """RGB image [H, W, 3], and an empty text; or None and what is wrong with the camera."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        return None, f"no file {path}"
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        return None, f"{path} cannot be decoded ({error})"
    if int(pixels.max(initial=0)) <= BLACK_LEVEL:
        return None, f"{path} is black"
    return pixels, ""


def read_cameras(paths: dict[str, Path]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Images [V, H, W, 3] of all cameras in the order of `paths`, and a warning per dead camera (zeros in its place).

    Raises:
        DataError: every camera is dead, or the cameras differ in size.
    """
    images: dict[str, NDArray[np.uint8]] = {}
    warnings = []
    for name, path in paths.items():
        pixels, problem = read_image(path)
        if pixels is None:
            warnings.append(f"{name} is dead, zeros are used: {problem}")
        else:
            images[name] = pixels
    if not images:
        raise DataError(
            f"all {len(paths)} cameras are dead: " + "; ".join(warnings),
            expected="at least one readable camera image",
            remedy=_REMEDY,
        )
    sizes = {name: image.shape[:2] for name, image in images.items()}
    hw = next(iter(sizes.values()))
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {h}x{w}" for name, (h, w) in sizes.items())
        raise DataError(
            f"cameras of different size: {listed}",
            expected="one native size (height x width) for all cameras",
            remedy="resize the images and scale their intrinsics to one size",
        )
    stacked = np.zeros((len(paths), *hw, 3), np.uint8)
    for index, name in enumerate(paths):
        if name in images:
            stacked[index] = images[name]
    return stacked, tuple(warnings)


def read_sweep(path: Path) -> NDArray[np.float32]:
    """Points [P, 4] (x, y, z in metres of the sensor's frame, intensity) of a nuScenes `.pcd.bin`; may be empty.

    Raises:
        DataError: no such file, not a whole number of points, or points that are not finite.
    """
    if not path.is_file():
        raise DataError(f"no LiDAR file {path}", expected="a .pcd.bin of float32 x 5", remedy=_REMEDY)
    try:
        numbers = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}", expected="a readable file", remedy=_REMEDY
        ) from error
    size = len(numbers)
    if size % 20:
        raise DataError(
            f"{path} has {size} bytes: truncated, or another format",
            expected="a multiple of 20 bytes (x, y, z, intensity, ring as float32)",
            remedy=_REMEDY,
        )
    points = numbers.view(np.float32).reshape(-1, 5)[:, :4]
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{path} has {bad} of {len(points)} points with NaN or infinite values",
            expected="finite points",
            remedy="filter the driver's invalid returns before the data set is written",
        )
    return points
