"""Graph inputs made on the device: raw pictures and points go up, everything else is computed there."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from altermoma.deploy.buckets import Buckets, Limits
from altermoma.deploy.cuda_driver import Cuda
from altermoma.deploy.device_cells import Cloud, DeviceCells
from altermoma.deploy.device_images import DeviceImages
from altermoma.deploy.device_inputs import LidarInputs, PoolInputs, RawFrame
from altermoma.deploy.device_kernels import DeviceKernels, Pointer
from altermoma.deploy.device_memory import Arena
from altermoma.deploy.device_pool import DevicePool
from altermoma.deploy.graph_line import Line
from altermoma.deploy.host_feed import HostFeed
from altermoma.errors import UnsupportedError
from altermoma.frames import Calibration
from altermoma.geometry import Geometry
from altermoma.ops.prepare import same_calibration
from altermoma.ops.resample import checked_plan

_ROOM = 1.25
"""Points that fit beside those of the frame that the buffers were made for."""

_LEAST_POINTS = 4096


@dataclass(kw_only=True)
class _Buffers:
    """What is made for one image size and up to so many points."""

    native_hw: tuple[int, int]
    cloud: Arena
    images: DeviceImages
    cells: DeviceCells
    measure: Line


class DeviceFeed:
    """Prepares frames with the project's kernels; bit by bit what `FramePreparer` gives.

    A frame with more rows in a level than the model takes is prepared on the host, which knows the nearest.

    Args:
        cuda: where the engines run.
        geometry: of the model, with voxels.
        limits: of the engines.
        image_hw: native images that are to be expected.
        types: of the graph inputs.

    Raises:
        UnsupportedError: no NVRTC, pillars, or images and types that the kernels do not make.
    """

    preparation: Literal["host", "device"] = "device"

    def __init__(
        self,
        cuda: Cuda,
        geometry: Geometry,
        limits: Limits,
        image_hw: tuple[int, int],
        types: Mapping[str, np.dtype[Any]],
    ) -> None:
        _require_served(geometry, types)
        checked_plan(image_hw, geometry.image)
        self._kernels, self._cuda, self._geometry, self._limits = DeviceKernels(cuda), cuda, geometry, limits
        self._buckets = Buckets(limits)
        self._host = HostFeed(geometry, limits)
        self._counted, self._pooled = cuda.new_event(), cuda.new_event()
        self._pool = DevicePool(self._kernels, geometry, self._buckets)
        self._pool_inputs = PoolInputs(shapes={}, version=0)
        self._calibration: Calibration | None = None
        self._made: _Buffers | None = None
        self._ms: dict[str, float] = {}
        self._dropped = 0

    @property
    def timings_ms(self) -> Mapping[str, float]:
        """Of the last frame: copies into page-locked memory, and waiting for the number of cells."""
        return self._ms

    @property
    def dropped(self) -> int:
        """Voxels of the last frame that were left out."""
        return self._dropped

    def begin(self, frame: RawFrame, stream: int) -> bool:
        """Uploads the cloud; True if buffers were made anew, so that nothing captured before is of use."""
        native_hw, points = frame.calibration.image_hw, frame.points_p5
        made = self._made
        fits = made is not None and made.native_hw == native_hw and len(points) <= made.cloud.shapes["points"][0]
        if made is None or not fits:
            made = self._made = self._make(native_hw, len(points), stream)
        started = time.perf_counter()
        made.cloud.host("points")[: len(points)] = points
        made.cloud.host("count")[0] = len(points)
        made.cloud.upload(stream)
        self._ms = {"copies": (time.perf_counter() - started) * 1e3}
        return not fits

    def camera(self, frame: RawFrame, arena: Arena, stream: int) -> None:
        """Uploads the pictures and the calibration."""
        images = self._buffers.images
        started = time.perf_counter()
        images.pictures.write({"pictures": frame.images_vhw3})
        images.pictures.upload(stream)
        images.aim(frame.calibration)
        images.cameras.upload(stream)
        self._ms["copies"] += (time.perf_counter() - started) * 1e3

    def queue_camera(self, arena: Arena, stream: int) -> None:
        """Resizes, normalises, draws the depth images."""
        self._buffers.images.queue(arena, stream)

    def pooling(self, calibration: Calibration, stream: int) -> PoolInputs:
        """The pooling tables of a calibration; of a new one, their sizes have to be waited for."""
        if self._calibration is None or not same_calibration(self._calibration, calibration):
            started = time.perf_counter()
            # What the device holds is of the new one from here on, also where that is refused below.
            self._calibration = None
            self._pool.queue_measure(calibration, stream)
            self._cuda.record(self._pooled, stream)
            self._cuda.wait_here(self._pooled)
            self._pool_inputs = PoolInputs(shapes=self._pool.shapes(), version=self._pool_inputs.version + 1)
            # A copy: the caller may write the next calibration into the same arrays.
            self._calibration = copy.deepcopy(calibration)
            self._ms["calibration"] = (time.perf_counter() - started) * 1e3
        return self._pool_inputs

    def fill_pooling(self, arena: Arena, stream: int) -> None:
        """Writes the pooling tables."""
        self._pool.queue_tables(arena, stream)

    def measure(self, frame: RawFrame, stream: int) -> LidarInputs | None:
        """Finds the cells of every level; waits for their number, which decides on the bucket."""
        made = self._buffers
        started = time.perf_counter()
        made.measure.run()
        self._cuda.record(self._counted, stream)
        self._cuda.wait_here(self._counted)
        self._ms["cells"] = (time.perf_counter() - started) * 1e3
        found = made.cells.measured()
        if found.crowded:
            inputs = self._host.measure(frame, stream)
            self._dropped = self._host.dropped
            return inputs
        self._dropped = max(found.voxels - self._geometry.max_voxels, 0)
        if not found.counts.seen:
            return None
        return LidarInputs(shapes=made.cells.shapes(self._buckets.rows(found.counts)), source=self)

    def lidar(self, arena: Arena, stream: int) -> None:
        """Nothing: everything is on the device."""

    def queue_lidar(self, arena: Arena, stream: int) -> None:
        """Writes voxels and tables."""
        self._buffers.cells.queue_tables(arena, stream)

    @property
    def _buffers(self) -> _Buffers:
        if self._made is None:
            raise ValueError("a frame has to begin first")
        return self._made

    def _make(self, native_hw: tuple[int, int], points: int, stream: int) -> _Buffers:
        capacity = max(int(points * _ROOM), _LEAST_POINTS)
        features = self._geometry.point_features
        specs = {"points": ((capacity, features), np.dtype(np.float32)), "count": ((1,), np.dtype(np.int32))}
        arena = Arena(self._cuda, specs, mirrored=True)
        cloud = Cloud(points=Pointer(arena.address("points")), count=Pointer(arena.address("count")), capacity=capacity)
        rows = self._limits.rows
        if rows is None:
            raise ValueError("pillars have no cells")
        cells = DeviceCells(self._kernels, self._geometry, rows, cloud)
        return _Buffers(
            native_hw=native_hw,
            cloud=arena,
            images=DeviceImages(self._kernels, self._geometry, native_hw, cloud),
            cells=cells,
            measure=Line(self._cuda, stream, lambda: cells.queue_measure(stream), name="voxels"),
        )


def _require_served(geometry: Geometry, types: Mapping[str, np.dtype[Any]]) -> None:
    remedy = "prepare frames on the host (preparation='host')"
    if geometry.lidar != "voxels":
        raise UnsupportedError("a model with pillars", expected="voxels, for the device kernels", remedy=remedy)
    floats = {"images", "depth", "voxels"}
    wrong = [name for name, dtype in types.items() if dtype != (np.float32 if name in floats else np.int32)]
    if wrong:
        raise UnsupportedError(
            f"graph inputs {', '.join(f'{name} ({types[name]})' for name in wrong)}",
            expected="float32 and, for tables, int32, which the device kernels make",
            remedy=remedy,
        )
