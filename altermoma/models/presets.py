"""The models one can ask for by name."""

from __future__ import annotations

import dataclasses
import difflib

from altermoma.errors import RecipeError
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.models.config import (
    BackboneConfig,
    BevConfig,
    CameraConfig,
    HeadConfig,
    LidarConfig,
    MapConfig,
    ModelConfig,
    PillarConfig,
    ResNetConfig,
    SwinConfig,
)
from altermoma.models.fusion import FusionModel

NUSCENES = Geometry(
    image=ImageGeometry(height=256, width=704, resize=0.48, resample="bicubic"),
    point_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
    voxel_size=(0.075, 0.075, 0.2),
    max_voxels=160000,
    level_rows=(240000, 120000, 60000),
    lidar_levels=3,
    depth_bins=(1.0, 60.0, 0.5),
    pool_cell=0.3,
    # BEVFusion asks for -10 to 10 m in one cell, but truncates cell numbers, so that all down to -30 m fall into it.
    pool_z=(-30.0, 10.0),
    fan_in=(16, 4),
    post_center_range=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
)
"""Ranges and grids of BEVFusion on nuScenes, as mmdet3d's configurations of it have them."""


def _bevfusion_mit(backbone: BackboneConfig) -> ModelConfig:
    """BEVFusion of mit-han-lab with SECOND's voxels; the widths are those of mmdet3d's configuration."""
    return ModelConfig(
        geometry=NUSCENES,
        backbone=backbone,
        camera=CameraConfig(neck=256, depth_widths=(8, 32, 64), depthnet=256, channels=80, downsample=2),
        lidar=LidarConfig(base=16, stages=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)), channels=128),
        bev=BevConfig(fuser=256, widths=(128, 256), layers=(5, 5), strides=(1, 2), neck=(256, 256)),
        head=HeadConfig(proposals=200, embed=128, attention_heads=8, ffn=256, branch=64),
    )


def _bevfusion_mit_pillars(backbone: BackboneConfig) -> ModelConfig:
    """BEVFusion of mit-han-lab with its PointPillars encoder and decoder; it ships the two without a camera.

    Its fuser stands before the decoder, so that the camera is pooled straight into the pillars' grid of 0.2 m.
    """
    geometry = dataclasses.replace(
        NUSCENES,
        lidar="pillars",
        point_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        voxel_size=(0.2, 0.2, 8.0),
        max_voxels=60000,
        level_rows=(),
        max_points_per_voxel=20,
        lidar_levels=0,
        head_stride=4,
        pool_cell=0.2,
    )
    return dataclasses.replace(
        _bevfusion_mit(backbone),
        geometry=geometry,
        camera=CameraConfig(neck=256, depth_widths=(8, 32, 64), depthnet=256, channels=80),
        lidar=PillarConfig(),
        bev=BevConfig(fuser=64, widths=(64, 128, 256), layers=(3, 5, 5), strides=(2, 2, 2), neck=(128, 128, 128)),
    )


def _with_map(config: ModelConfig) -> ModelConfig:
    """With BEVFusion's map segmentation beside the boxes, in the ranges and grids of its segmentation models.

    Those have no box head, and lift pixels without looking at the LiDAR's depth.
    """
    geometry = dataclasses.replace(
        NUSCENES,
        point_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        voxel_size=(0.1, 0.1, 0.2),
        max_voxels=120000,
        level_rows=(180000, 90000, 45000),
        pool_cell=0.4,
    )
    return dataclasses.replace(config, geometry=geometry, map=MapConfig())


def _bottlenecks(*blocks: int) -> ResNetConfig:
    first, second, third, fourth = blocks
    return ResNetConfig(block="bottleneck", stem=64, widths=(64, 128, 256, 512), blocks=(first, second, third, fourth))


TINY_PILLARS = ModelConfig(
    geometry=Geometry(
        lidar="pillars",
        voxel_size=(0.4, 0.4, 6.0),
        max_voxels=8000,
        max_points_per_voxel=12,
        lidar_levels=0,
        head_stride=2,
        pool_cell=0.4,
    ),
    lidar=PillarConfig(widths=(32, 32)),
    bev=BevConfig(fuser=32, widths=(24, 48, 80), layers=(1, 2, 2), strides=(1, 2, 2), neck=(24, 32, 32)),
)
"""bevfusion-tiny with pillars: the same ranges, pictures and head."""

TINY_SWIN = ModelConfig(backbone=SwinConfig(embed=24, depths=(2, 2, 2, 2), heads=(2, 4, 8, 16), window=4))
"""bevfusion-tiny with a Swin transformer: the same LiDAR encoder, fusion and head."""

PRESETS: dict[str, ModelConfig] = {
    "bevfusion-tiny": ModelConfig(),
    "bevfusion-tiny-swin": TINY_SWIN,
    "bevfusion-tiny-pillars": TINY_PILLARS,
    "bevfusion-mit-r50-second": _bevfusion_mit(_bottlenecks(3, 4, 6, 3)),
    "bevfusion-mit-r101-second": _bevfusion_mit(_bottlenecks(3, 4, 23, 3)),
    "bevfusion-mit-swint-voxelnet": _bevfusion_mit(SwinConfig()),
    "bevfusion-mit-swint-voxelnet-map": _with_map(_bevfusion_mit(SwinConfig())),
    "bevfusion-mit-r101-pointpillars": _bevfusion_mit_pillars(_bottlenecks(3, 4, 23, 3)),
}


def config_of(name: str) -> ModelConfig:
    """The configuration of a preset; an unknown name is an error that lists the known ones."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        raise RecipeError(
            f"unknown model {name!r}",
            expected="one of " + ", ".join(PRESETS),
            remedy=f"did you mean {near[0]!r}?" if near else "choose one of these presets",
        )
    return PRESETS[name]


def build(name: str) -> FusionModel:
    """A preset with random weights."""
    return FusionModel(config_of(name))
