"""Small random fusion models and frames for the pruning tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from altermoma.frames import Calibration
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.models.batch import FrameBatch, collate
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
from altermoma.models.head import HeadOutputs
from altermoma.ops.prepare import FramePreparer

SMALL = Geometry(
    image=ImageGeometry(cameras=2, height=64, width=96),
    point_range=(-8.0, -8.0, -3.0, 8.0, 8.0, 3.0),
    depth_bins=(1.0, 9.0, 1.0),
)

BASIC = ModelConfig(geometry=SMALL, head=HeadConfig(proposals=12))

BOTTLENECK = ModelConfig(
    geometry=dataclasses.replace(SMALL, pool_cell=0.4),
    backbone=ResNetConfig(block="bottleneck", stem=16, widths=(8, 16, 16, 24), blocks=(2, 1, 2, 1)),
    camera=CameraConfig(neck=24, depth_widths=(4, 8, 12), depthnet=24, channels=20, downsample=2),
    lidar=LidarConfig(base=8, stages=((8, 8, 16), (16, 24), (24, 24)), channels=12),
    bev=BevConfig(fuser=32, widths=(24, 32), layers=(1, 2), strides=(1, 2), neck=(16, 24)),
    head=HeadConfig(proposals=12, embed=32, ffn=40, branch=16),
)

SWIN = dataclasses.replace(BASIC, backbone=SwinConfig(embed=16, depths=(1, 2, 1, 1), heads=(1, 2, 2, 4), window=3))


def scaled_down(config: ModelConfig) -> ModelConfig:
    """The same layers and widths on small pictures and a small range."""
    geometry, image = config.geometry, config.geometry.image
    # 16 x 16 cells for the head, which has more proposals than fewer cells could give.
    reach = (16 << geometry.lidar_levels) * geometry.head_stride * geometry.voxel_size[0] / 2
    small = dataclasses.replace(
        geometry,
        image=dataclasses.replace(image, cameras=2, height=64, width=96, resize=None),
        point_range=(-reach, -reach, geometry.point_range[2], reach, reach, geometry.point_range[5]),
    )
    return dataclasses.replace(config, geometry=small)


def fusion_model(config: ModelConfig, seed: int = 0) -> FusionModel:
    """Random weights and random norm statistics, so that no channel is trivial; eval mode."""
    torch.manual_seed(seed)
    model = FusionModel(config).eval()
    for name, parameter in model.img_backbone.named_parameters():
        # Attention that is far from even, so that every dimension of a head counts.
        if name.endswith(("qkv.weight", "qkv.bias", "relative_position_bias_table")):
            nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high)
    return model


def frame_batch(geometry: Geometry, frames: int = 1, seed: int = 0) -> FrameBatch:
    """Random pictures and points around cameras that look outwards."""
    rng = np.random.default_rng(seed)
    image = geometry.image
    preparer = FramePreparer(geometry)
    calibration = outward_cameras(image)
    low, high = np.array(geometry.point_range[:3]), np.array(geometry.point_range[3:])
    inputs = []
    for _ in range(frames):
        pictures = rng.integers(0, 256, (image.cameras, image.height, image.width, 3), dtype=np.uint8)
        points = rng.uniform((*low, 0, 0), (*high, 1, 0.1), (600, 5)).astype(np.float32)
        inputs.append(preparer.prepare_parts(pictures, points, calibration))
    return collate(inputs, geometry)


def outward_cameras(image: ImageGeometry) -> Calibration:
    """Cameras on a ring, 90 degrees wide, at the LiDAR's origin."""
    matrices = []
    for view in range(image.cameras):
        yaw = 2 * math.pi * view / image.cameras
        ahead, left = np.array([math.cos(yaw), math.sin(yaw), 0]), np.array([-math.sin(yaw), math.cos(yaw), 0])
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([-left, [0, 0, -1], ahead])
        matrices.append(matrix)
    focal = image.width / 2
    intrinsics = np.array([[focal, 0, image.width / 2], [0, focal, image.height / 2], [0, 0, 1.0]])
    return Calibration(
        camera_names=tuple(f"camera {view}" for view in range(image.cameras)),
        intrinsics_v33=np.repeat(intrinsics[None], image.cameras, axis=0),
        camera_from_lidar_v44=np.stack(matrices),
        image_hw=(image.height, image.width),
    )


def outputs_of(model: FusionModel, batch: FrameBatch) -> Mapping[str, Tensor]:
    """Every output of the head by name, without gradients."""
    with torch.no_grad():
        found: HeadOutputs = model(batch)
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
