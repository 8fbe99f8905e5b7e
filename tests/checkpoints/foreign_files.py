"""Checkpoints as other programs write them, of the tiny preset."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build

PRESET = "bevfusion-tiny"
MIT_CHILDREN = {
    "img_backbone": "encoders.camera.backbone",
    "img_neck": "encoders.camera.neck",
    "view_transform": "encoders.camera.vtransform",
    "pts_middle_encoder": "encoders.lidar.backbone",
    "fusion_layer": "fuser",
    "pts_backbone": "decoder.backbone",
    "pts_neck": "decoder.neck",
    "bbox_head": "heads.object",
    "pts_voxel_encoder": "encoders.lidar.backbone.pts_voxel_encoder",
    "map_head": "heads.map",
}
MIT_DECODER = {
    "self_attn.attn": "self_attn",
    "cross_attn.attn": "multihead_attn",
    "ffn.layers.0.0": "linear1",
    "ffn.layers.1": "linear2",
    "norms.0": "norm1",
    "norms.1": "norm2",
    "norms.2": "norm3",
}


def tiny_model(seed: int = 0) -> FusionModel:
    """Random weights, statistics included: running means of zero would hide a swap."""
    torch.manual_seed(seed)
    model = build(PRESET)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model.eval()


def grid_of_tiny() -> dict[str, Tensor]:
    """What xbound = ybound = (-32, 32, 0.8), zbound = (0, 10, 10), dbound = (1, 41, 1), 96 x 256 give."""
    frustum = torch.empty(40, 12, 32, 3)
    frustum[..., 0] = torch.arange(32) * (255 / 31)
    frustum[..., 1] = (torch.arange(12) * (95 / 11))[:, None]
    frustum[..., 2] = torch.arange(1.0, 41.0)[:, None, None]
    return {
        "view_transform.dx": torch.tensor([0.8, 0.8, 10.0]),
        "view_transform.bx": torch.tensor([-31.6, -31.6, 5.0]),
        "view_transform.nx": torch.tensor([80, 80, 1]),
        "view_transform.frustum": frustum,
    }


def as_mit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spelled and laid out as mit-han-lab/bevfusion: sparse weights [k, k, k, in, out]."""
    found = {}
    for name, tensor in state.items():
        child, _, rest = name.partition(".")
        if rest.startswith("decoder.0."):
            inner = rest.removeprefix("decoder.0.")
            for ours, mit in MIT_DECODER.items():
                if inner.startswith(ours + "."):
                    inner = mit + inner.removeprefix(ours)
                    break
            rest = "decoder.0." + inner
        sparse = child == "pts_middle_encoder" and tensor.dim() == 5
        found[f"{MIT_CHILDREN[child]}.{rest}"] = torch.moveaxis(tensor, 0, -1).contiguous() if sparse else tensor
    return found


def write(path: Path, state: Mapping[str, Tensor], **beside: object) -> Path:
    torch.save({"meta": {"epoch": 6}, "state_dict": OrderedDict(state), **beside}, path)
    return path
