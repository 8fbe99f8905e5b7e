"""Network images and depth images on the device: the kernels of images.cu and depth.cu."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.device_cells import Cloud
from altermoma.deploy.device_kernels import DeviceKernels, Pointer
from altermoma.deploy.device_memory import Arena
from altermoma.frames import Calibration
from altermoma.geometry import Geometry
from altermoma.ops.images import colour, image_warp
from altermoma.ops.resample import checked_plan

_U8, _I32, _F32 = np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.float32)


class DeviceImages:
    """Native pictures of one size and a cloud to `images` and `depth`, as `altermoma.ops.images` and `depth_image` do.

    Attributes:
        pictures: uint8 [V, native height, native width, 3], to be filled and uploaded for every frame.
        cameras: projections and warp, likewise.

    Raises:
        UnsupportedError: Pillow resizes images of this size in another way than the kernels.
    """

    def __init__(self, kernels: DeviceKernels, geometry: Geometry, native_hw: tuple[int, int], cloud: Cloud) -> None:
        self._kernels, self._geometry, self._cloud = kernels, geometry, cloud
        self._native_hw, self._plan = native_hw, checked_plan(native_hw, geometry.image)
        cuda, image, plan = kernels.cuda, geometry.image, self._plan
        views = image.cameras
        self.pictures = Arena(cuda, {"pictures": ((views, *native_hw, 3), _U8)}, mirrored=True)
        cameras: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "projections": ((views, 3, 4), _F32),
            "warp": ((3,), _F32),
        }
        self.cameras = Arena(cuda, cameras, mirrored=True)
        constants: dict[str, NDArray[Any]] = {
            "column bounds": plan.columns.bounds_n2,
            "column weights": plan.columns.weights_nk,
            "row bounds": plan.rows.bounds_n2,
            "row weights": plan.rows.weights_nk,
            "colour": np.stack(colour(image)),
        }
        self._constants = Arena(cuda, {name: (a.shape, a.dtype) for name, a in constants.items()}, mirrored=True)
        self._constants.write(constants)
        self._constants.upload(cuda.stream)
        cuda.synchronise()
        between: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "resized": ((views, plan.height, image.width, 3), _U8),
            "last": ((views, image.height, image.width), _I32),
        }
        self._between = Arena(cuda, between, mirrored=False)

    @property
    def size(self) -> int:
        """Bytes of device memory."""
        return self.pictures.size + self._between.size

    def aim(self, calibration: Calibration) -> None:
        """Writes a calibration into `cameras`."""
        warp = image_warp(self._native_hw, self._geometry.image)
        projections_v34 = calibration.intrinsics_v33 @ calibration.camera_from_lidar_v44[:, :3]
        where = np.array((warp.scale, warp.left, warp.top), np.float32)
        self.cameras.write({"projections": projections_v34.astype(np.float32), "warp": where})

    def queue(self, inputs: Arena, stream: int) -> None:
        """Writes `images` and `depth`, float32, of what was uploaded."""
        self._images(inputs, stream)
        self._depth(inputs, stream)

    def _images(self, inputs: Arena, stream: int) -> None:
        image, plan = self._geometry.image, self._plan
        views, (height, width) = image.cameras, self._native_hw
        resized = _at(self._between, "resized")
        columns = (_at(self._constants, "column bounds"), _at(self._constants, "column weights"))
        arguments = (
            _at(self.pictures, "pictures"), views, height, width, plan.top, plan.height, image.width,
            *columns, plan.columns.weights_nk.shape[1], resized,
        )  # fmt: skip
        self._kernels.run("images", "resize_rows", views * plan.height * image.width, arguments, stream)
        rows = (_at(self._constants, "row bounds"), _at(self._constants, "row weights"))
        finish = (
            resized, views, plan.height, image.width, image.height, *rows, plan.rows.weights_nk.shape[1],
            _at(self._constants, "colour"), _at(inputs, "images"),
        )  # fmt: skip
        self._kernels.run("images", "resize_columns", views * image.height * image.width, finish, stream)

    def _depth(self, inputs: Arena, stream: int) -> None:
        image, cloud, features = self._geometry.image, self._cloud, self._geometry.point_features
        views, pixels = image.cameras, image.height * image.width
        last, projections = _at(self._between, "last"), _at(self.cameras, "projections")
        self._kernels.cuda.fill(last, 0xFF, self._between.nbytes("last"), stream)
        arguments = (
            cloud.points, cloud.count, features, projections, _at(self.cameras, "warp"),
            views, image.height, image.width, last,
        )  # fmt: skip
        self._kernels.run("depth", "find_last", cloud.capacity * views, arguments, stream)
        found = (cloud.points, features, projections, views, pixels, last, _at(inputs, "depth"))
        self._kernels.run("depth", "write_depth", views * pixels, found, stream)


def _at(arena: Arena, name: str) -> Pointer:
    return Pointer(arena.address(name))
