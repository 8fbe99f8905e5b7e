"""What a frame on the device is given and gives, and who makes its graph inputs: the host or the device itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.device_memory import Arena
from altermoma.deploy.engines import Shape
from altermoma.deploy.stage_io import Arrays
from altermoma.frames import Calibration


@dataclass(frozen=True, kw_only=True)
class RawFrame:
    """What the sensors gave, checked."""

    images_vhw3: NDArray[np.uint8]
    points_p5: NDArray[np.float32]
    calibration: Calibration


@dataclass(frozen=True, kw_only=True)
class FrameAnswer:
    """Outputs of the last stage, milliseconds by part, voxels left out, and whether the LiDAR branch saw anything."""

    outputs: Arrays
    timings_ms: dict[str, float]
    dropped: int
    seen: bool


class LidarSource(Protocol):
    """Fills the LiDAR inputs of one bucket. `queue_lidar` is captured, `lidar` is not."""

    preparation: Literal["host", "device"]

    def lidar(self, arena: Arena, stream: int) -> None:
        """Brings the inputs that were measured last to the device."""
        ...

    def queue_lidar(self, arena: Arena, stream: int) -> None:
        """Makes the inputs from what is on the device."""
        ...


@dataclass(frozen=True, kw_only=True)
class LidarInputs:
    """Shapes of a frame's LiDAR inputs, in the order in which they are to lie, and what fills them."""

    shapes: Mapping[str, Shape]
    source: LidarSource


@dataclass(frozen=True, kw_only=True)
class PoolInputs:
    """Shapes of the pooling tables, and a number that changes with the tables."""

    shapes: Mapping[str, Shape]
    version: int


class Feed(Protocol):
    """Makes the graph inputs of a frame, on the host or on the device. `queue_camera` is captured, the others are not.

    Everything is queued on the stream that is given, so that a frame's cloud is there for `measure` but not yet for
    `queue_camera`: the frame sees to that.
    """

    preparation: Literal["host", "device"]

    @property
    def timings_ms(self) -> Mapping[str, float]:
        """Milliseconds of the last frame's parts."""
        ...

    @property
    def dropped(self) -> int:
        """Voxels or pillars of the last frame that were left out."""
        ...

    def begin(self, frame: RawFrame, stream: int) -> bool:
        """Before everything else; True if what was captured before is of no use any more."""
        ...

    def camera(self, frame: RawFrame, arena: Arena, stream: int) -> None:
        """Brings a frame's camera inputs, or what they are made of, to the device."""
        ...

    def queue_camera(self, arena: Arena, stream: int) -> None:
        """Makes the camera inputs from what `camera` brought."""
        ...

    def pooling(self, calibration: Calibration, stream: int) -> PoolInputs:
        """The pooling tables of a calibration. May wait for the stream if it is a new one."""
        ...

    def fill_pooling(self, arena: Arena, stream: int) -> None:
        """Brings the tables that `pooling` told of to the device."""
        ...

    def measure(self, frame: RawFrame, stream: int) -> LidarInputs | None:
        """The LiDAR inputs of this frame; None if nothing is seen. May wait for the stream."""
        ...
