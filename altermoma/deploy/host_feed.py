"""Graph inputs made on the host by the numpy path, page-locked and copied to the device."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.buckets import Buckets, Limits
from altermoma.deploy.device_inputs import LidarInputs, PoolInputs, RawFrame
from altermoma.deploy.device_memory import Arena
from altermoma.frames import Calibration
from altermoma.geometry import Geometry
from altermoma.ops.prepare import FramePreparer, StageInputs, nothing_seen


class HostFeed:
    """Prepares frames with `FramePreparer`, its tables padded to buckets."""

    preparation: Literal["host", "device"] = "host"

    def __init__(self, geometry: Geometry, limits: Limits) -> None:
        self._dropped = 0
        self._preparer = FramePreparer(geometry, Buckets(limits))
        self._inputs: StageInputs = {}
        self._pooling: dict[str, NDArray[np.int32]] = {}
        self._version = 0

    @property
    def timings_ms(self) -> dict[str, float]:
        """Of the last frame's parts on the host."""
        return self._preparer.timings_ms

    @property
    def dropped(self) -> int:
        """Voxels or pillars of the last frame that were left out."""
        return self._dropped

    def begin(self, frame: RawFrame, stream: int) -> bool:
        """Nothing: the host keeps the cloud."""
        del frame, stream
        return False

    def camera(self, frame: RawFrame, arena: Arena, stream: int) -> None:
        """Prepares images and depth."""
        arena.write(self._preparer.camera_inputs(frame.images_vhw3, frame.points_p5, frame.calibration))
        arena.upload(stream)

    def queue_camera(self, arena: Arena, stream: int) -> None:
        """Nothing: `camera` did it all."""

    def pooling(self, calibration: Calibration, stream: int) -> PoolInputs:
        """The pooling tables of a calibration."""
        del stream
        self._preparer.timings_ms.pop("tables", None)
        tables = self._preparer.pooling_inputs(calibration)
        # The preparer gives the very same arrays as long as the calibration does not change.
        if tables is not self._pooling:
            self._pooling, self._version = tables, self._version + 1
        return PoolInputs(shapes={name: array.shape for name, array in tables.items()}, version=self._version)

    def fill_pooling(self, arena: Arena, stream: int) -> None:
        """Copies the pooling tables."""
        arena.write(self._pooling)
        arena.upload(stream)

    def measure(self, frame: RawFrame, stream: int) -> LidarInputs | None:
        """Prepares voxels or pillars with their tables."""
        del stream
        before = self._preparer.dropped_voxels
        pooling_ms = self._preparer.timings_ms.get("tables", 0.0)
        self._inputs = self._preparer.lidar_inputs(frame.points_p5)
        self._preparer.timings_ms["tables"] += pooling_ms
        self._dropped = self._preparer.dropped_voxels - before
        if nothing_seen(self._inputs):
            return None
        return LidarInputs(shapes={name: array.shape for name, array in self._inputs.items()}, source=self)

    def lidar(self, arena: Arena, stream: int) -> None:
        """Copies what `measure` prepared."""
        arena.write(self._inputs)
        arena.upload(stream)

    def queue_lidar(self, arena: Arena, stream: int) -> None:
        """Nothing: `lidar` did it all."""
