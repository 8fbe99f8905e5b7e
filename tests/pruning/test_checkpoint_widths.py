"""Pruned weights rebuild the pruned model; widths that contradict each other are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fusion_toys import BOTTLENECK, SWIN, fusion_model
from test_groups import random_keep
from torch import Tensor

from altermoma.checkpoints.widths import load_pruned
from altermoma.errors import CheckpointError
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.surgery import shrink

State = dict[str, Tensor]


def pruned(config: ModelConfig) -> State:
    model = fusion_model(config)
    groups = fusion_groups(model)
    return dict(shrink(model, groups, random_keep(groups, 4)).state_dict())


@pytest.mark.parametrize("config", [BOTTLENECK, SWIN], ids=["bottleneck", "swin"])
def test_pruned_weights_rebuild_their_model(config: ModelConfig) -> None:
    state = pruned(config)
    model = FusionModel(config)
    load_pruned(model, state, source="it")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert {g.name: g.width for g in fusion_groups(model)} == {
        name: len(index) for name, index in random_keep(fusion_groups(fusion_model(config)), 4).items()
    }


def cut(name: str, dim: int, count: int = 1) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state[name] = state[name].narrow(dim, 0, state[name].shape[dim] - count).clone()

    return apply


def together(*steps: Callable[[State], None]) -> Callable[[State], None]:
    def apply(state: State) -> None:
        for step in steps:
            step(state)

    return apply


ATTENTION = "img_backbone.stages.1.blocks.0.attn.w_msa"


@pytest.mark.parametrize(
    ("config", "edit", "message"),
    [
        (BOTTLENECK, cut("img_backbone.layer2.0.bn1.weight", 0), r"layer2\.0"),
        (BOTTLENECK, cut("img_backbone.layer3.1.conv3.weight", 0), r"layer3"),
        (BOTTLENECK, cut("view_transform.downsample.3.weight", 1), r"downsample"),
        (BOTTLENECK, cut("fusion_layer.0.weight", 1), r"fusion_layer\.0"),
        (BOTTLENECK, cut("view_transform.depthnet.6.bias", 0), r"depthnet\.6"),
        (BOTTLENECK, cut("bbox_head.shared_conv.weight", 0), r"shared_conv"),
        (SWIN, cut(f"{ATTENTION}.proj.weight", 1), r"proj\.weight has \d+ entries"),
        (SWIN, cut(f"{ATTENTION}.proj.weight", 1, 2), r"w_msa"),
        (SWIN, together(*(cut(f"{ATTENTION}.qkv.{leaf}", 0, 2) for leaf in ("weight", "bias"))), r"w_msa\.qkv"),
        (SWIN, cut("img_backbone.stages.0.blocks.0.ffn.layers.1.weight", 1), r"ffn"),
        (SWIN, cut("img_backbone.norm2.bias", 0), r"norm2"),
    ],
)
def test_contradicting_widths_are_refused(config: ModelConfig, edit: Callable[[State], None], message: str) -> None:
    state = dict(fusion_model(config).state_dict())
    edit(state)
    with pytest.raises(CheckpointError, match=message):
        load_pruned(FusionModel(config), state, source="edited.safetensors")
