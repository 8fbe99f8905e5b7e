"""mmdet3d's configuration of the camera branch as ours."""

from __future__ import annotations

from altermoma.checkpoints.mmdet3d.fields import Fields
from altermoma.models.config import BackboneConfig, CameraConfig, ResNetConfig, SwinConfig

RESNET_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BASIC_DEPTHS = (18, 34)
DEPTH_WIDTHS = (8, 32, 64)
"""Widths of DepthLSSTransform's `dtransform`: fixed in mmdet3d's code."""

_TRAINING = ("init_cfg", "pretrained", "with_cp", "frozen_stages")


def read_backbone(fields: Fields) -> BackboneConfig:
    """`model.img_backbone`."""
    with fields:
        return _resnet(fields) if fields.kind("ResNet", "SwinTransformer") == "ResNet" else _swin(fields)


def _resnet(fields: Fields) -> ResNetConfig:
    depth, base = fields.integer("depth"), fields.integer("base_channels", 64)
    if depth not in RESNET_BLOCKS:
        fields.refuse("depth", " or ".join(map(str, RESNET_BLOCKS)))
    fields.must("in_channels", 3, default=3)
    fields.must("num_stages", 4, default=4)
    fields.must("strides", (1, 2, 2, 2), default=(1, 2, 2, 2))
    fields.must("dilations", (1, 1, 1, 1), default=(1, 1, 1, 1))
    fields.must("out_indices", (1, 2, 3), default=(0, 1, 2, 3))
    fields.must("style", "pytorch", default="pytorch")
    for switch in ("deep_stem", "avg_down"):
        fields.must(switch, False, default=False)
    for addition in ("conv_cfg", "dcn", "plugins"):
        fields.must(addition, None, default=None)
    if fields.has("norm_cfg"):
        fields.norm("norm_cfg", 1e-5, "BN", "BN2d")
    fields.skip("norm_cfg", "norm_eval", "zero_init_residual", "stage_with_dcn", *_TRAINING)
    stem = fields.get("stem_channels", None)
    return ResNetConfig(
        block="basic" if depth in BASIC_DEPTHS else "bottleneck",
        stem=base if stem is None else int(stem),
        widths=(base, 2 * base, 4 * base, 8 * base),
        blocks=RESNET_BLOCKS[depth],
    )


def _swin(fields: Fields) -> SwinConfig:
    patch = fields.integer("patch_size", 4)
    fields.must("strides", (patch, 2, 2, 2), default=(4, 2, 2, 2))
    fields.must("in_channels", 3, default=3)
    fields.must("out_indices", (1, 2, 3), default=(0, 1, 2, 3))
    fields.must("qkv_bias", True, default=True)
    fields.must("qk_scale", None, default=None)
    fields.must("patch_norm", True, default=True)
    fields.must("use_abs_pos_embed", False, default=False)
    fields.must("act_cfg", {"type": "GELU"}, default={"type": "GELU"})
    fields.must("norm_cfg", {"type": "LN"}, default={"type": "LN"})
    fields.skip("pretrain_img_size", "drop_rate", "attn_drop_rate", "drop_path_rate", "convert_weights", *_TRAINING)
    return SwinConfig(
        embed=fields.integer("embed_dims", 96),
        patch=patch,
        depths=fields.integers("depths", 4, default=(2, 2, 6, 2)),
        heads=fields.integers("num_heads", 4, default=(3, 6, 12, 24)),
        window=fields.integer("window_size", 7),
        mlp_ratio=fields.integer("mlp_ratio", 4),
    )


def backbone_channels(config: BackboneConfig) -> list[int]:
    """Channels of the three maps that the neck reads."""
    if isinstance(config, SwinConfig):
        return [config.embed << stage for stage in (1, 2, 3)]
    expansion = 1 if config.block == "basic" else 4
    return [width * expansion for width in config.widths[1:]]


def read_neck(fields: Fields, channels: list[int]) -> int:
    """`model.img_neck`: GeneralizedLSSFPN; returns its width."""
    with fields:
        fields.kind("GeneralizedLSSFPN")
        fields.must("in_channels", channels)
        fields.must("start_level", 0, default=0)
        fields.must("end_level", -1, default=-1)
        fields.must("no_norm_on_lateral", False, default=False)
        fields.must("conv_cfg", None, default=None)
        fields.must("upsample_cfg", {"mode": "bilinear", "align_corners": False})
        fields.skip("num_outs")
        if fields.has("norm_cfg"):
            fields.norm("norm_cfg", 1e-5, "BN", "BN2d")
        fields.skip("norm_cfg")
        if fields.has("act_cfg"):
            with fields.section("act_cfg") as activation:
                activation.kind("ReLU")
                activation.skip("inplace")
        fields.skip("act_cfg")
        return fields.integer("out_channels")


def read_view_transform(fields: Fields, neck: int) -> CameraConfig:
    """`model.view_transform`: widths; the ranges are the geometry's (see `geometry_parts`)."""
    fields.kind("DepthLSSTransform")
    fields.must("in_channels", neck)
    downsample = fields.integer("downsample", 1)
    if downsample not in (1, 2):
        fields.refuse("downsample", "1 or 2")
    return CameraConfig(
        neck=neck,
        depth_widths=DEPTH_WIDTHS,
        depthnet=neck,
        channels=fields.integer("out_channels"),
        downsample=downsample,
    )
