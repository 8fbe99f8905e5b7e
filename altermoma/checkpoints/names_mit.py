"""mit-han-lab's names of BEVFusion's parameters, and ours, which are mmdet3d's."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PREFIXES = (
    ("encoders.camera.backbone.", "img_backbone."),
    ("encoders.camera.neck.", "img_neck."),
    ("encoders.camera.vtransform.", "view_transform."),
    ("encoders.lidar.backbone.pts_voxel_encoder.", "pts_voxel_encoder."),
    ("encoders.lidar.backbone.", "pts_middle_encoder."),
    ("fuser.", "fusion_layer."),
    ("decoder.backbone.", "pts_backbone."),
    ("decoder.neck.", "pts_neck."),
    ("heads.object.", "bbox_head."),
    ("heads.map.", "map_head."),
    ("heads.map.", "map_head."),
)
_HEAD_PARTS = (
    ("self_attn.", "self_attn.attn."),
    ("multihead_attn.", "cross_attn.attn."),
    ("linear1.", "ffn.layers.0.0."),
    ("linear2.", "ffn.layers.1."),
    ("norm1.", "norms.0."),
    ("norm2.", "norms.1."),
    ("norm3.", "norms.2."),
)
_DECODER = re.compile(r"(bbox_head\.decoder\.\d+\.)(.*)")


def is_mit(names: Iterable[str]) -> bool:
    """Whether names are spelled as in mit-han-lab/bevfusion."""
    return any(name.startswith(("encoders.", "heads.")) for name in names)


def from_mit(name: str) -> str:
    """Our name of a parameter; one that we do not know is returned as it is."""
    renamed = _swap(name, _PREFIXES)
    inside = _DECODER.fullmatch(renamed) if renamed != name else None
    return renamed if inside is None else inside.group(1) + _swap(inside.group(2), _HEAD_PARTS)


def to_mit(name: str) -> str:
    """mit-han-lab's name of a parameter of ours."""
    inside = _DECODER.fullmatch(name)
    if inside is not None:
        name = inside.group(1) + _swap(inside.group(2), [(ours, mit) for mit, ours in _HEAD_PARTS])
    return _swap(name, [(ours, mit) for mit, ours in _PREFIXES])


def _swap(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for found, replacement in pairs:
        if name.startswith(found):
            return replacement + name.removeprefix(found)
    return name
