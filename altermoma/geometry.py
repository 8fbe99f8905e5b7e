"""The geometry that a model, its tables and its bundle share. Pure data: no torch, JSON-serialisable.

Frames: LiDAR frame in metres, z up. Grids are indexed [x, y] (x first), as in mmdet3d's BEVFusion.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ImageGeometry:
    """How a native camera image becomes the network's image: resize, then crop.

    Attributes:
        height, width: network input in pixels.
        resize: factor on both sides of the native image, after which the bottom rows and the middle columns are kept;
            None fits the native width to the network's.
        resample: filter of the resizing, as Pillow's.
        feature_stride: pixels of the network image per cell of the feature map that is lifted.
        mean, std: per RGB channel, on the 0-255 scale.
    """

    cameras: int = 6
    height: int = 96
    width: int = 256
    resize: float | None = None
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    feature_stride: int = 8
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    @property
    def feature_hw(self) -> tuple[int, int]:
        return self.height // self.feature_stride, self.width // self.feature_stride


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Ranges and grids of one model.

    Attributes:
        point_range: x, y, z minimum then maximum, metres.
        voxel_size: metres along x, y, z.
        lidar: what the LiDAR branch is fed with: voxels for a sparse encoder, or pillars, which are one voxel high.
        max_voxels: voxels or pillars the LiDAR stage accepts; more are dropped with a counted warning.
        level_rows: voxels that each level after the first accepts; more are dropped, those farthest from the LiDAR
            first, with a counted warning. Empty: as many as there are.
        max_points_per_voxel: points averaged per voxel, or fed per pillar; later ones are ignored.
        point_features: columns of a point: x, y, z (m), intensity, time lag (s).
        lidar_levels: number of 2x downsamplings (x, y) in the sparse encoder; 0 with pillars.
        head_stride: cells of the fused map per cell of the head's map, along x and y.
        depth_bins: start, stop, step of the lifted depth, metres.
        pool_cell: metres of one cell that camera features are pooled into.
        pool_z: lowest and highest z of lifted points that are pooled, metres.
        fan_in: rows summed per gather, level by level, of the pooling tables; their product bounds the number of
            runs (image column and depth bin, see altermoma.ops.pooling_tables) that one cell can be reached by.
        post_center_range: detections outside are dropped, metres, x y z minimum then maximum.
    """

    image: ImageGeometry = ImageGeometry()
    point_range: tuple[float, float, float, float, float, float] = (-32.0, -32.0, -3.0, 32.0, 32.0, 3.0)
    voxel_size: tuple[float, float, float] = (0.2, 0.2, 0.3)
    lidar: Literal["voxels", "pillars"] = "voxels"
    max_voxels: int = 30000
    level_rows: tuple[int, ...] = ()
    max_points_per_voxel: int = 10
    point_features: int = 5
    lidar_levels: int = 2
    head_stride: int = 1
    depth_bins: tuple[float, float, float] = (1.0, 41.0, 1.0)
    pool_cell: float = 0.8
    pool_z: tuple[float, float] = (-10.0, 10.0)
    fan_in: tuple[int, ...] = (16, 4)
    post_center_range: tuple[float, float, float, float, float, float] = (-40.0, -40.0, -10.0, 40.0, 40.0, 10.0)

    @property
    def sparse_shape(self) -> tuple[int, int, int]:
        """Voxel grid (x, y, z); z has one more cell, as SECOND's encoders use it."""
        low, high = self.point_range[:3], self.point_range[3:]
        x, y, z = (round((h - l) / s) for l, h, s in zip(low, high, self.voxel_size, strict=True))
        return x, y, z + 1

    @property
    def fused_shape(self) -> tuple[int, int]:
        """Grid (x, y) in which the branches meet: that of the LiDAR branch's output."""
        x, y, _ = self.sparse_shape
        return x >> self.lidar_levels, y >> self.lidar_levels

    @property
    def bev_shape(self) -> tuple[int, int]:
        """Grid (x, y) of the map that the head reads."""
        x, y = self.fused_shape
        return x // self.head_stride, y // self.head_stride

    @property
    def bev_cell(self) -> float:
        """Metres of one cell of `bev_shape`."""
        return self.voxel_size[0] * (1 << self.lidar_levels) * self.head_stride

    @property
    def pool_shape(self) -> tuple[int, int]:
        low, high = self.point_range[:2], self.point_range[3:5]
        x, y = (round((h - l) / self.pool_cell) for l, h in zip(low, high, strict=True))
        return x, y

    @property
    def zbound(self) -> tuple[float, float]:
        """`pool_z` as BEVFusion writes it: its one cell reaches a cell further down, as it truncates cell numbers."""
        low, high = self.pool_z
        return (low + high) / 2, high

    @property
    def depth_count(self) -> int:
        start, stop, step = self.depth_bins
        return round((stop - start) / step)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Geometry:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k != "image"}
        image: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["image"].items()}
        return cls(image=ImageGeometry(**image), **fields)
