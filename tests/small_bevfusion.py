"""A BEVFusion of few channels and cells that mmdet3d's classes can be configured to, and a pruned one of it."""

from __future__ import annotations

import dataclasses

import torch

from altermoma.geometry import Geometry, ImageGeometry
from altermoma.models.config import (
    BevConfig,
    CameraConfig,
    HeadConfig,
    LidarConfig,
    ModelConfig,
    ResNetConfig,
    SwinConfig,
)
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import NUSCENES
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.surgery import shrink

SMALL = ModelConfig(
    geometry=Geometry(
        image=ImageGeometry(height=64, width=160, resize=0.12, resample="bicubic"),
        point_range=(-25.6, -25.6, -5.0, 25.6, 25.6, 3.0),
        voxel_size=(0.2, 0.2, 0.2),
        max_voxels=20000,
        level_rows=(240000, 120000, 60000),
        lidar_levels=3,
        depth_bins=(1.0, 30.0, 1.0),
        pool_cell=0.8,
        pool_z=(-30.0, 10.0),
        fan_in=NUSCENES.fan_in,
    ),
    backbone=ResNetConfig(block="bottleneck", stem=16, widths=(16, 32, 64, 128), blocks=(3, 4, 6, 3)),
    camera=CameraConfig(neck=32, depth_widths=(8, 32, 64), depthnet=32, channels=24, downsample=2),
    lidar=LidarConfig(base=8, stages=((8, 8, 16), (16, 16, 16), (16, 16, 32), (32, 32)), channels=32),
    bev=BevConfig(fuser=32, widths=(32, 48), layers=(2, 2), strides=(1, 2), neck=(32, 32)),
    head=HeadConfig(proposals=50, embed=32, attention_heads=4, ffn=64, branch=64),
)


SMALL_SWIN = dataclasses.replace(
    SMALL, backbone=SwinConfig(embed=16, depths=(2, 2, 2, 2), heads=(2, 2, 4, 4), window=5)
)


def small_model(config: ModelConfig = SMALL) -> FusionModel:
    """Random weights and statistics."""
    torch.manual_seed(0)
    model = FusionModel(config)
    for name, tensor in model.named_buffers():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn_like(tensor))
    return model.eval()


def pruned_model(config: ModelConfig = SMALL) -> FusionModel:
    """A different share of every channel group gone, of many an odd number."""
    model = small_model(config)
    groups = fusion_groups(model)
    keep = {}
    for index, group in enumerate(groups):
        count = max(2, group.width - 1 - index % (group.width // 2))
        keep[group.name] = torch.randperm(group.width)[:count].sort().values
    return shrink(model, groups, keep).eval()
