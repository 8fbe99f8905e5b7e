"""mmdet3d's configuration of the LiDAR branch and of everything behind the fuser as ours."""

from __future__ import annotations

import itertools

from altermoma.checkpoints.mmdet3d.fields import Fields
from altermoma.checkpoints.mmdet3d.geometry_parts import read_head_grid
from altermoma.geometry import Geometry
from altermoma.models.bev import BN_EPS
from altermoma.models.config import BevConfig, HeadConfig, LidarConfig
from altermoma.models.head import BRANCHES
from altermoma.ops.sparse_tables import level_shapes, level_windows

HEAD_BRANCH = 64
"""Width of the box branches: SeparateHead's default, which TransFusionHead does not change."""

POINT_CLASSES = {"nuScenes": (8, 9), "Waymo": (1, 2)}
_TRAINING = ("loss_cls", "loss_bbox", "loss_heatmap", "train_cfg", "auxiliary", "bn_momentum")


def read_sparse_encoder(fields: Fields, point_features: int) -> LidarConfig:
    """`model.pts_middle_encoder`, but for `sparse_shape`, which `check_sparse_shape` compares."""
    fields.kind("BEVFusionSparseEncoder")
    fields.must("in_channels", point_features)
    fields.must("order", ("conv", "norm", "act"), default=("conv", "norm", "act"))
    fields.must("block_type", "basicblock", default="conv_module")
    fields.must("return_middle_feats", False, default=False)
    if fields.has("norm_cfg"):
        fields.norm("norm_cfg", BN_EPS, "BN1d")
    fields.skip("norm_cfg")
    stages = tuple(tuple(map(int, widths)) for widths in fields.get("encoder_channels"))
    base = fields.integer("base_channels", 16)
    # A residual block keeps its width: only strided convolutions change it.
    entering = base
    for index, widths in enumerate(stages):
        blocks = widths if index == len(stages) - 1 else widths[:-1]
        if not widths or any(width != entering for width in blocks):
            fields.refuse("encoder_channels", f"residual blocks of {entering} channels in stage {index + 1}")
        entering = widths[-1]
    return LidarConfig(base=base, stages=stages, channels=fields.integer("output_channels", 128))


def check_sparse_grid(fields: Fields, config: LidarConfig, geometry: Geometry) -> None:
    """Grid and paddings of the sparse encoder: those that our index tables have."""
    fields.must("sparse_shape", geometry.sparse_shape)
    paddings = fields.get("encoder_paddings")
    for index, (window, stage) in enumerate(zip(level_windows(geometry.lidar_levels), paddings, strict=False)):
        found = stage[-1] if isinstance(stage[-1], list) else [stage[-1]] * 3
        if found != list(window.padding):
            fields.refuse("encoder_paddings", f"{window.padding} at the end of stage {index + 1}")
    if len(paddings) != len(config.stages):
        fields.refuse("encoder_paddings", f"{len(config.stages)} stages")


def lidar_map_channels(config: LidarConfig, geometry: Geometry) -> int:
    """Channels of the LiDAR's bird's-eye view."""
    return config.channels * level_shapes(geometry)[-1][2]


def read_fuser(fields: Fields, camera: int, lidar: int) -> int:
    """`model.fusion_layer`: ConvFuser; returns its width."""
    with fields:
        fields.kind("ConvFuser")
        fields.must("in_channels", [camera, lidar])
        return fields.integer("out_channels")


def read_bev(backbone: Fields, neck: Fields, fuser: int) -> BevConfig:
    """`model.pts_backbone` (SECOND) and `model.pts_neck` (SECONDFPN)."""
    with backbone:
        backbone.kind("SECOND")
        backbone.must("in_channels", fuser)
        widths = backbone.integers("out_channels")
        layers = backbone.integers("layer_nums", len(widths))
        strides = backbone.integers("layer_strides", len(widths))
        backbone.norm("norm_cfg", BN_EPS, "BN", "BN2d")
        _no_bias(backbone, "conv_cfg", "Conv2d")
        backbone.skip("init_cfg", "pretrained")
    with neck:
        neck.kind("SECONDFPN")
        neck.must("in_channels", widths)
        neck.must("upsample_strides", list(itertools.accumulate(strides, lambda scale, step: scale * step)))
        neck.must("use_conv_for_no_stride", True, default=False)
        neck.norm("norm_cfg", BN_EPS, "BN", "BN2d")
        _no_bias(neck, "upsample_cfg", "deconv")
        if neck.has("conv_cfg"):
            _no_bias(neck, "conv_cfg", "Conv2d")
        neck.skip("init_cfg", "conv_cfg")
        outputs = neck.integers("out_channels", len(widths))
    return BevConfig(fuser=fuser, widths=widths, layers=layers, strides=strides, neck=outputs)


def _no_bias(fields: Fields, key: str, kind: str) -> None:
    with fields.section(key) as layer:
        layer.kind(kind)
        layer.must("bias", False, default=True)


def read_head(fields: Fields, channels: int, geometry: Geometry) -> tuple[HeadConfig, tuple[float, ...]]:
    """`model.bbox_head`: TransFusionHead; returns it and `post_center_range`."""
    with fields:
        fields.kind("TransFusionHead")
        fields.must("in_channels", channels)
        fields.must("num_decoder_layers", 1, default=3)
        fields.must("nms_kernel_size", 3, default=1)
        fields.must("num_heatmap_convs", 2, default=2)
        fields.must("common_heads", {name: [size, 2] for name, size in BRANCHES.items()})
        fields.must("conv_cfg", {"type": "Conv1d"}, default={"type": "Conv1d"})
        fields.must("norm_cfg", {"type": "BN1d"}, default={"type": "BN1d"})
        fields.must("bias", "auto", default="auto")
        fields.skip("num_heads", *_TRAINING)
        embed = fields.integer("hidden_channel", 128)
        with fields.section("decoder_layer") as layer:
            heads, hidden = _decoder(layer, embed)
        with fields.section("test_cfg") as test:
            dataset = test.get("dataset")
            read_head_grid(test, "test_cfg", geometry)
            test.must("nms_type", None, default=None)
        with fields.section("bbox_coder") as coder:
            reach = _coder(coder, geometry)
        config = HeadConfig(
            classes=fields.integer("num_classes"),
            proposals=fields.integer("num_proposals", 128),
            embed=embed,
            attention_heads=heads,
            ffn=hidden,
            branch=HEAD_BRANCH,
            point_classes=POINT_CLASSES.get(str(dataset), ()),
        )
    return config, reach


def _decoder(fields: Fields, embed: int) -> tuple[int, int]:
    fields.kind("TransformerDecoderLayer")
    heads = []
    for key in ("self_attn_cfg", "cross_attn_cfg"):
        with fields.section(key) as attention:
            attention.must("embed_dims", embed)
            heads.append(attention.integer("num_heads"))
            attention.must("batch_first", True, default=True)
            attention.skip("dropout", "attn_drop", "proj_drop")
    if heads[0] != heads[1]:
        fields.refuse("cross_attn_cfg", f"num_heads = {heads[0]}, as in self_attn_cfg")
    with fields.section("ffn_cfg") as ffn:
        ffn.must("embed_dims", embed)
        ffn.must("num_fcs", 2, default=2)
        hidden = ffn.integer("feedforward_channels")
        if ffn.has("act_cfg"):
            with ffn.section("act_cfg") as activation:
                activation.kind("ReLU")
                activation.skip("inplace")
        ffn.skip("act_cfg", "ffn_drop", "dropout_layer")
    if fields.has("norm_cfg"):
        fields.must("norm_cfg", {"type": "LN"})
    fields.must("pos_encoding_cfg", {"input_channel": 2, "num_pos_feats": embed})
    fields.skip("norm_cfg", "init_cfg")
    return heads[0], hidden


def _coder(fields: Fields, geometry: Geometry) -> tuple[float, ...]:
    fields.kind("TransFusionBBoxCoder")
    read_head_grid(fields, "bbox_coder", geometry)
    fields.must("code_size", 10)
    fields.must("score_threshold", 0.0, default=None)
    return fields.numbers("post_center_range", 6)


def read_voxel_encoder(fields: Fields) -> int:
    """`model.pts_voxel_encoder`: the mean of a voxel's points; returns the columns of a point."""
    with fields:
        fields.kind("HardSimpleVFE")
        return fields.integer("num_features", 4)
