"""A model of ours as mmdet3d's `model` table; what its classes cannot have is refused or left to `widths`."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NoReturn

from altermoma.checkpoints.mmdet3d.camera_parts import BASIC_DEPTHS, DEPTH_WIDTHS, RESNET_BLOCKS, backbone_channels
from altermoma.checkpoints.mmdet3d.lidar_parts import HEAD_BRANCH, POINT_CLASSES, lidar_map_channels
from altermoma.errors import UnsupportedError
from altermoma.geometry import Geometry
from altermoma.models.bev import BN_EPS
from altermoma.models.config import (
    BackboneConfig,
    BevConfig,
    CameraConfig,
    HeadConfig,
    LidarConfig,
    ModelConfig,
    PillarConfig,
    ResNetConfig,
    SwinConfig,
)
from altermoma.models.head import BRANCHES
from altermoma.ops.sparse_tables import level_windows

_NORM = {"type": "BN", "eps": BN_EPS, "momentum": 0.01}


def nearest(config: ModelConfig) -> ModelConfig:
    """The model that mmdet3d builds from `model_table(config)`: of the same layers, some of other widths.

    A few widths are not mmdet3d's to configure: they follow from others or are fixed in its code.
    """
    return dataclasses.replace(
        config,
        backbone=_configurable_backbone(config.backbone),
        camera=dataclasses.replace(config.camera, depth_widths=DEPTH_WIDTHS, depthnet=config.camera.neck),
        head=dataclasses.replace(config.head, branch=HEAD_BRANCH),
    )


def _configurable_backbone(config: BackboneConfig) -> BackboneConfig:
    if isinstance(config, SwinConfig):
        return config
    base = config.widths[0]
    return dataclasses.replace(config, widths=(base, 2 * base, 4 * base, 8 * base))


def model_table(config: ModelConfig) -> dict[str, Any]:
    """mmdet3d's `model` table of `nearest(config)`.

    Raises:
        UnsupportedError: a number of layers or a geometry that mmdet3d's classes do not have; names our field.
    """
    if config.map is not None:
        _refuse("map", "a map head", "boxes alone")
    config = nearest(config)
    geometry, channels = config.geometry, backbone_channels(config.backbone)
    lidar = _sparse(config.lidar)
    return {
        "type": "BEVFusion",
        "data_preprocessor": _preprocessor(geometry),
        "pts_voxel_encoder": {"type": "HardSimpleVFE", "num_features": geometry.point_features},
        "pts_middle_encoder": _encoder(lidar, geometry),
        "img_backbone": _backbone(config.backbone),
        "img_neck": _neck(config.camera, channels),
        "view_transform": _view_transform(config.camera, geometry),
        "fusion_layer": {
            "type": "ConvFuser",
            "in_channels": [config.camera.channels, lidar_map_channels(lidar, geometry)],
            "out_channels": config.bev.fuser,
        },
        **_bev(config.bev),
        "bbox_head": _head(config.head, sum(config.bev.neck), geometry),
    }


def _sparse(config: LidarConfig | PillarConfig) -> LidarConfig:
    if isinstance(config, PillarConfig):
        _refuse("lidar", "pillars", "voxels and a sparse encoder")
    return config


def _refuse(field: str, value: object, expected: str) -> NoReturn:
    raise UnsupportedError(
        f"{field} = {value} of this model",
        expected=f"{expected}, which mmdet3d's BEVFusion can be configured to",
        remedy="write a model that has it, or keep this one in altermoma",
    )


def _preprocessor(geometry: Geometry) -> dict[str, Any]:
    return {
        "type": "Det3DDataPreprocessor",
        "pad_size_divisor": 32,
        "mean": list(geometry.image.mean),
        "std": list(geometry.image.std),
        "bgr_to_rgb": False,
        "voxelize_cfg": {
            "max_num_points": geometry.max_points_per_voxel,
            "point_cloud_range": list(geometry.point_range),
            "voxel_size": list(geometry.voxel_size),
            "max_voxels": [geometry.max_voxels, geometry.max_voxels],
            "voxelize_reduce": True,
        },
    }


def _encoder(config: LidarConfig, geometry: Geometry) -> dict[str, Any]:
    paddings: list[tuple[Any, ...]] = []
    for widths, window in itertools.zip_longest(config.stages, level_windows(geometry.lidar_levels)):
        strided = () if window is None else (1,) if window.padding == (1, 1, 1) else (window.padding,)
        paddings.append((0,) * (len(widths) - len(strided)) + strided)
    return {
        "type": "BEVFusionSparseEncoder",
        "in_channels": geometry.point_features,
        "sparse_shape": list(geometry.sparse_shape),
        "order": ("conv", "norm", "act"),
        "norm_cfg": {**_NORM, "type": "BN1d"},
        "base_channels": config.base,
        "output_channels": config.channels,
        "encoder_channels": config.stages,
        "encoder_paddings": tuple(paddings),
        "block_type": "basicblock",
    }


def _backbone(config: BackboneConfig) -> dict[str, Any]:
    return _swin(config) if isinstance(config, SwinConfig) else _resnet(config)


def _swin(config: SwinConfig) -> dict[str, Any]:
    return {
        "type": "mmdet.SwinTransformer",
        "embed_dims": config.embed,
        "patch_size": config.patch,
        "strides": [config.patch, 2, 2, 2],
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "window_size": config.window,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": True,
        "qk_scale": None,
        "drop_path_rate": 0.2,
        "patch_norm": True,
        "out_indices": [1, 2, 3],
        "with_cp": False,
        "convert_weights": False,
    }


def _resnet(config: ResNetConfig) -> dict[str, Any]:
    kinds = [depth for depth, blocks in RESNET_BLOCKS.items() if blocks == config.blocks]
    depths = [depth for depth in kinds if (depth in BASIC_DEPTHS) == (config.block == "basic")]
    if not depths:
        _refuse("backbone.blocks", f"{config.blocks} {config.block}", "a ResNet of 18, 34, 50, 101 or 152 layers")
    return {
        "type": "mmdet.ResNet",
        "depth": depths[0],
        "base_channels": config.widths[0],
        "stem_channels": config.stem,
        "num_stages": 4,
        "out_indices": [1, 2, 3],
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": False,
        "style": "pytorch",
    }


def _neck(config: CameraConfig, channels: list[int]) -> dict[str, Any]:
    return {
        "type": "GeneralizedLSSFPN",
        "in_channels": channels,
        "out_channels": config.neck,
        "start_level": 0,
        "num_outs": 3,
        "norm_cfg": {"type": "BN2d", "requires_grad": True},
        "act_cfg": {"type": "ReLU", "inplace": True},
        "upsample_cfg": {"mode": "bilinear", "align_corners": False},
    }


def _view_transform(config: CameraConfig, geometry: Geometry) -> dict[str, Any]:
    low_x, low_y, _, high_x, high_y, _ = geometry.point_range
    low_z, high_z = geometry.zbound
    if config.downsample not in (1, 2):
        _refuse("camera.downsample", config.downsample, "1 or 2")
    return {
        "type": "DepthLSSTransform",
        "in_channels": config.neck,
        "out_channels": config.channels,
        "image_size": [geometry.image.height, geometry.image.width],
        "feature_size": list(geometry.image.feature_hw),
        "xbound": [low_x, high_x, geometry.pool_cell],
        "ybound": [low_y, high_y, geometry.pool_cell],
        "zbound": [low_z, high_z, high_z - low_z],
        "dbound": list(geometry.depth_bins),
        "downsample": config.downsample,
    }


def _bev(config: BevConfig) -> dict[str, Any]:
    return {
        "pts_backbone": {
            "type": "SECOND",
            "in_channels": config.fuser,
            "out_channels": list(config.widths),
            "layer_nums": list(config.layers),
            "layer_strides": list(config.strides),
            "norm_cfg": _NORM,
            "conv_cfg": {"type": "Conv2d", "bias": False},
        },
        "pts_neck": {
            "type": "SECONDFPN",
            "in_channels": list(config.widths),
            "out_channels": list(config.neck),
            "upsample_strides": list(itertools.accumulate(config.strides, lambda scale, step: scale * step)),
            "norm_cfg": _NORM,
            "upsample_cfg": {"type": "deconv", "bias": False},
            "use_conv_for_no_stride": True,
        },
    }


def _head(config: HeadConfig, channels: int, geometry: Geometry) -> dict[str, Any]:
    datasets = [name for name, classes in POINT_CLASSES.items() if classes == config.point_classes]
    if not datasets:
        _refuse("head.point_classes", config.point_classes, " or ".join(map(str, POINT_CLASSES.values())))
    factor = 1 << geometry.lidar_levels
    grid = {"out_size_factor": factor, "voxel_size": list(geometry.voxel_size[:2])}
    attention = {"embed_dims": config.embed, "num_heads": config.attention_heads, "dropout": 0.1}
    return {
        "type": "TransFusionHead",
        "num_proposals": config.proposals,
        "auxiliary": True,
        "in_channels": channels,
        "hidden_channel": config.embed,
        "num_classes": config.classes,
        "nms_kernel_size": 3,
        "bn_momentum": 0.1,
        "num_decoder_layers": 1,
        "decoder_layer": {
            "type": "TransformerDecoderLayer",
            "self_attn_cfg": attention,
            "cross_attn_cfg": attention,
            "ffn_cfg": {
                "embed_dims": config.embed,
                "feedforward_channels": config.ffn,
                "num_fcs": 2,
                "ffn_drop": 0.1,
                "act_cfg": {"type": "ReLU", "inplace": True},
            },
            "norm_cfg": {"type": "LN"},
            "pos_encoding_cfg": {"input_channel": 2, "num_pos_feats": config.embed},
        },
        "common_heads": {name: [size, 2] for name, size in BRANCHES.items()},
        "bbox_coder": {
            "type": "TransFusionBBoxCoder",
            **grid,
            "pc_range": list(geometry.point_range[:2]),
            "post_center_range": list(geometry.post_center_range),
            "score_threshold": 0.0,
            "code_size": 10,
        },
        "test_cfg": {
            "dataset": datasets[0],
            **grid,
            "grid_size": list(geometry.sparse_shape),
            "pc_range": list(geometry.point_range[:2]),
            "nms_type": None,
        },
        "train_cfg": _assignment(datasets[0], factor, geometry),
        "loss_cls": {"type": "mmdet.FocalLoss", "use_sigmoid": True, "reduction": "mean", "loss_weight": 1.0},
        "loss_heatmap": {"type": "mmdet.GaussianFocalLoss", "reduction": "mean", "loss_weight": 1.0},
        "loss_bbox": {"type": "mmdet.L1Loss", "reduction": "mean", "loss_weight": 0.25},
    }


def _assignment(dataset: str, factor: int, geometry: Geometry) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "point_cloud_range": list(geometry.point_range),
        "grid_size": list(geometry.sparse_shape),
        "voxel_size": list(geometry.voxel_size),
        "out_size_factor": factor,
        "gaussian_overlap": 0.1,
        "min_radius": 2,
        "pos_weight": -1,
        "code_weights": [1.0] * 8 + [0.2] * 2,
        "assigner": {
            "type": "HungarianAssigner3D",
            "iou_calculator": {"type": "BboxOverlaps3D", "coordinate": "lidar"},
            "cls_cost": {"type": "mmdet.FocalLossCost", "gamma": 2.0, "alpha": 0.25, "weight": 0.15},
            "reg_cost": {"type": "BBoxBEVL1Cost", "weight": 0.25},
            "iou_cost": {"type": "IoU3DCost", "weight": 0.25},
        },
    }
