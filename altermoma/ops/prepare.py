"""From one frame's sensors to the graph inputs: the host's whole share of the work before the engines."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError
from altermoma.frames import Calibration, Frame
from altermoma.geometry import Geometry
from altermoma.ops.depth_image import depth_images
from altermoma.ops.network_images import NetworkImages
from altermoma.ops.padding import Padding, Unpadded
from altermoma.ops.pillars import PillarBuilder
from altermoma.ops.point_kernels import count_unusable
from altermoma.ops.pooling_tables import build_pooling_tables
from altermoma.ops.sparse_tables import SparseTableBuilder, in_rows
from altermoma.ops.voxels import Voxeliser

StageInputs = dict[str, NDArray[np.generic]]

LIDAR_ROWS = {"voxels": "voxels", "pillars": "points"}
"""What `Geometry.lidar` says -> the graph input that has no row when the cloud is empty."""


class FramePreparer:
    """Prepares frames of one geometry. Pooling tables are kept until the calibration changes. One per thread.

    Args:
        padding: how many rows the tables get; as many as a frame needs if left out.

    Attributes:
        timings_ms: milliseconds of the last frame's parts: images, depth, voxels, tables.
        dropped_voxels: voxels or pillars left out so far because a frame had more than the model accepts.
    """

    def __init__(self, geometry: Geometry, padding: Padding | None = None) -> None:
        self.geometry = geometry
        self._padding = padding or Unpadded()
        self.timings_ms: dict[str, float] = {}
        self.dropped_voxels = 0
        lidar = _PillarInputs if geometry.lidar == "pillars" else _VoxelInputs
        self._images = NetworkImages(geometry.image)
        self._lidar: _PillarInputs | _VoxelInputs = lidar(geometry, self._padding)
        self._pooling_of: tuple[Calibration, dict[str, NDArray[np.int32]]] | None = None

    def prepare(self, frame: Frame, *, lidar_aug_44: NDArray[np.float64] | None = None) -> StageInputs:
        """Graph inputs by name for one frame; `lidar_aug_44` moves points and lifted pixels alike."""
        return self.prepare_parts(frame.images_vhw3, frame.points_p5, frame.calibration, lidar_aug_44=lidar_aug_44)

    def prepare_parts(
        self,
        images_vhw3: NDArray[np.uint8],
        points_p5: NDArray[np.float32],
        calibration: Calibration,
        *,
        lidar_aug_44: NDArray[np.float64] | None = None,
    ) -> StageInputs:
        """As `prepare`; images already of the network's size are taken as resized."""
        self._check(images_vhw3, points_p5, calibration)
        return {
            **self.camera_inputs(images_vhw3, points_p5, calibration),
            **self.lidar_inputs(_moved(points_p5, lidar_aug_44)),
            **self.pooling_inputs(calibration, lidar_aug_44),
        }

    def camera_inputs(
        self, images_vhw3: NDArray[np.uint8], points_p5: NDArray[np.float32], calibration: Calibration
    ) -> StageInputs:
        """`images` and `depth`; arguments as in `prepare_parts`, but not checked."""
        image = self.geometry.image
        inputs: StageInputs = {}
        with self._timed("images"):
            inputs["images"] = self._images(images_vhw3)
        with self._timed("depth"):
            inputs["depth"] = depth_images(_writable(points_p5), calibration, image)
        return inputs

    def lidar_inputs(self, points_p5: NDArray[np.float32]) -> StageInputs:
        """Voxels or pillars and their tables; arguments as in `prepare_parts`, but not checked."""
        with self._timed("voxels"):
            self._lidar.sort(_writable(points_p5))
        with self._timed("tables"):
            inputs = self._lidar.inputs()
            self.dropped_voxels += self._lidar.dropped
        return inputs

    def pooling_inputs(
        self, calibration: Calibration, lidar_aug_44: NDArray[np.float64] | None = None
    ) -> dict[str, NDArray[np.int32]]:
        """Pooling tables; the very same arrays as long as the calibration does not change. Counts as `tables`."""
        started = time.perf_counter()
        tables = self._pooling(calibration, lidar_aug_44)
        self.timings_ms["tables"] = self.timings_ms.get("tables", 0.0) + (time.perf_counter() - started) * 1e3
        return tables

    def _pooling(
        self, calibration: Calibration, lidar_aug_44: NDArray[np.float64] | None
    ) -> dict[str, NDArray[np.int32]]:
        if lidar_aug_44 is not None:
            return build_pooling_tables(calibration, self.geometry, lidar_aug_44)
        if self._pooling_of is None or not same_calibration(self._pooling_of[0], calibration):
            tables = build_pooling_tables(calibration, self.geometry, padding=self._padding)
            # A copy: the caller may write the next calibration into the same arrays.
            self._pooling_of = copy.deepcopy(calibration), tables
        return self._pooling_of[1]

    def _check(self, images: NDArray[np.uint8], points: NDArray[np.float32], calibration: Calibration) -> None:
        views = self.geometry.image.cameras
        if images.ndim != 4 or images.shape[0] != views or images.shape[3] != 3:
            raise DataError(
                f"images of shape {images.shape}",
                expected=f"[{views}, height, width, 3] RGB",
                remedy=f"give the pictures of all {views} cameras, zeros for one that is dead",
            )
        columns = self.geometry.point_features
        if points.ndim != 2 or points.shape[1] != columns:
            raise DataError(
                f"points of shape {points.shape}",
                expected=f"[P, {columns}]: x, y, z, intensity, time lag",
                remedy="add the columns that are missing; the time lag of a single sweep is 0",
            )
        shapes = calibration.intrinsics_v33.shape, calibration.camera_from_lidar_v44.shape
        if shapes != ((views, 3, 3), (views, 4, 4)):
            raise DataError(
                f"calibration of shapes {shapes[0]} and {shapes[1]}",
                expected=f"intrinsics [{views}, 3, 3] and camera_from_lidar [{views}, 4, 4]",
                remedy="give one matrix of each kind per camera, in the order of the pictures",
            )

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings_ms[part] = (time.perf_counter() - started) * 1e3


class _VoxelInputs:
    """Points to the inputs of a sparse encoder, in two parts: voxels, then their tables."""

    def __init__(self, geometry: Geometry, padding: Padding) -> None:
        self._voxelise, self._tables, self._padding = Voxeliser(geometry), SparseTableBuilder(geometry), padding

    def sort(self, points_p5: NDArray[np.float32]) -> None:
        """Sorts the points into cells."""
        self._voxels = self._voxelise(points_p5)

    @property
    def dropped(self) -> int:
        """Cells of the last frame, of any level, that were left out."""
        return self._voxels.dropped + self._tables.dropped

    def inputs(self) -> StageInputs:
        places, tables = self._tables.build(self._voxels.keys_n, self._padding.rows)
        return {"voxels": in_rows(self._voxels.features_nc, places), **tables}


class _PillarInputs:
    """As `_VoxelInputs` for a pillar encoder, whose tables come with the pillars."""

    def __init__(self, geometry: Geometry, padding: Padding) -> None:
        self._build, self._padding = PillarBuilder(geometry), padding

    def sort(self, points_p5: NDArray[np.float32]) -> None:
        """Sorts the points into pillars."""
        self._pillars = self._build(points_p5)

    @property
    def dropped(self) -> int:
        """Pillars of the last frame that were left out."""
        return self._pillars.dropped

    def inputs(self) -> StageInputs:
        return self._pillars.inputs(self._padding)


def nothing_seen(tensors: Mapping[str, NDArray[Any]]) -> bool:
    """Whether some level of the LiDAR branch has no row: then none after it has, and no cell gets a value."""
    whole = {*LIDAR_ROWS.values(), "out_table"}
    rows = {name: len(array) for name, array in tensors.items() if name in whole}
    for name, array in tensors.items():
        if name.startswith("down_table_"):
            # The segments of a level's rows: all are empty, or none.
            level = name.rpartition("_")[0]
            rows[level] = rows.get(level, 0) + len(array)
    return 0 in rows.values()


def dropped_warning(count: int, geometry: Geometry) -> str:
    """What to say of a frame with more voxels or pillars than the model takes."""
    levels = f" (at coarser levels {', '.join(map(str, geometry.level_rows))})" if geometry.level_rows else ""
    return f"{count} {geometry.lidar} beyond the model's {geometry.max_voxels}{levels} were dropped"


def unusable_points(points_p5: NDArray[np.float32]) -> int:
    """Number of points that hold NaN or infinity."""
    return count_unusable(_writable(points_p5))


def same_calibration(first: Calibration, second: Calibration) -> bool:
    """Whether both calibrations give the same pooling tables."""
    return (
        first.image_hw == second.image_hw
        and np.array_equal(first.intrinsics_v33, second.intrinsics_v33)
        and np.array_equal(first.camera_from_lidar_v44, second.camera_from_lidar_v44)
    )


def _writable(points_p5: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compiled loops take no read-only array, which is what np.frombuffer makes of a driver's message."""
    return np.require(points_p5, np.float32, ["C", "W"])


def _moved(points: NDArray[np.float32], lidar_aug_44: NDArray[np.float64] | None) -> NDArray[np.float32]:
    if lidar_aug_44 is None:
        return points
    moved = points.copy()
    moved[:, :3] = points[:, :3] @ lidar_aug_44[:3, :3].T.astype(np.float32) + lidar_aug_44[:3, 3].astype(np.float32)
    return moved
