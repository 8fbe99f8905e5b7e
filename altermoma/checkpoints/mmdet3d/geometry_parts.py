"""Ranges, grids and pictures: mmdet3d spreads over five tables what is one Geometry of ours."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from altermoma.checkpoints.mmdet3d.fields import Fields
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.models.presets import NUSCENES


class Voxels(NamedTuple):
    """`model.data_preprocessor.voxelize_cfg`."""

    point_range: tuple[float, ...]
    voxel_size: tuple[float, ...]
    max_voxels: int
    max_points: int


class Pictures(NamedTuple):
    """What `model.data_preprocessor` does with pictures."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class View(NamedTuple):
    """Ranges of `model.view_transform`."""

    image_hw: tuple[int, ...]
    stride: int
    cell: float
    pool_z: tuple[float, float]
    depth: tuple[float, ...]


def read_preprocessor(fields: Fields) -> tuple[Pictures, Voxels]:
    """`model.data_preprocessor`."""
    with fields:
        fields.kind("Det3DDataPreprocessor")
        # BEVFusion loads pictures as RGB.
        for swap in ("bgr_to_rgb", "rgb_to_bgr"):
            fields.must(swap, False, default=False)
        fields.must("voxel", False, default=False)
        fields.skip("pad_size_divisor", "pad_value", "non_blocking")
        pictures = Pictures(fields.numbers("mean", 3), fields.numbers("std", 3))
        with fields.section("voxelize_cfg") as voxelize:
            voxelize.must("voxelize_reduce", True)
            voxelize.skip("deterministic")
            limits = voxelize.integers("max_voxels")
            voxels = Voxels(
                voxelize.numbers("point_cloud_range", 6),
                voxelize.numbers("voxel_size", 3),
                limits[-1],
                voxelize.integer("max_num_points"),
            )
    return pictures, voxels


def read_view(fields: Fields, voxels: Voxels) -> View:
    """The ranges of `model.view_transform`; its widths are read by `camera_parts`."""
    image = fields.integers("image_size", 2)
    features = fields.integers("feature_size", 2)
    stride = image[0] // max(features[0], 1)
    if any(pixels != cells * stride for pixels, cells in zip(image, features, strict=True)) or stride != 8:
        fields.refuse("feature_size", f"an eighth of image_size {list(image)}")
    bounds = {}
    for axis, name in enumerate(("xbound", "ybound")):
        low, high, cell = bounds[name] = fields.numbers(name, 3)
        if not (math.isclose(low, voxels.point_range[axis]) and math.isclose(high, voxels.point_range[axis + 3])):
            fields.refuse(name, f"the range of the point cloud, {list(voxels.point_range)}")
        if not math.isclose(cell, bounds["xbound"][2]):
            fields.refuse(name, f"square cells of {bounds['xbound'][2]} m")
    low, high, height = fields.numbers("zbound", 3)
    if not math.isclose(high - low, height):
        fields.refuse("zbound", f"one cell of {high - low} m")
    # BEVFusion truncates cell numbers, so that whatever lies up to one cell below the range falls into cell 0.
    return View(image, stride, bounds["xbound"][2], (low - height, high), fields.numbers("dbound", 3))


def read_head_grid(fields: Fields, name: str, geometry: Geometry) -> None:
    """A copy of the grid inside `model.bbox_head`: all must agree."""
    size = [1 << geometry.lidar_levels, *geometry.voxel_size[:2], *geometry.point_range[:2]]
    fields.must("out_size_factor", size[0])
    fields.must("voxel_size", size[1:3])
    fields.must("pc_range", size[3:])
    if name == "test_cfg":
        fields.must("grid_size", geometry.sparse_shape)


def read_geometry(
    pictures: Pictures, voxels: Voxels, view: View, resize: float, point_features: int, levels: int
) -> Geometry:
    """One Geometry of all parts; `resize` is the factor on native pictures, `levels` those of the sparse encoder."""
    return Geometry(
        image=ImageGeometry(
            height=view.image_hw[0],
            width=view.image_hw[1],
            resize=resize,
            # What Pillow does unless told otherwise, and ImageAug3D does not tell.
            resample="bicubic",
            feature_stride=view.stride,
            mean=_three(pictures.mean),
            std=_three(pictures.std),
        ),
        point_range=_six(voxels.point_range),
        voxel_size=_three(voxels.voxel_size),
        max_voxels=voxels.max_voxels,
        max_points_per_voxel=voxels.max_points,
        depth_bins=_three(view.depth),
        pool_cell=view.cell,
        pool_z=view.pool_z,
        # How sums are cut is our own choice, and the presets' is made for their contract.
        fan_in=NUSCENES.fan_in,
        level_rows=NUSCENES.level_rows,
        point_features=point_features,
        lidar_levels=levels,
    )


def with_reach(geometry: Geometry, reach: tuple[float, ...]) -> Geometry:
    """The geometry with the range that final centres must lie in."""
    return dataclasses.replace(geometry, post_center_range=_six(reach))


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def _six(values: tuple[float, ...]) -> tuple[float, float, float, float, float, float]:
    return (*_three(values[:3]), *_three(values[3:]))
