"""FLOPs against hand counts from layer shapes, and the analytic cost against counting the shrunk model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fusion_toys import BASIC, BOTTLENECK, SWIN, frame_batch, fusion_model
from test_groups import random_keep
from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.sparse_encoder import GatherConv
from altermoma.pruning.costs import CostModel, channel_costs
from altermoma.pruning.flops import FlopReport, LayerFlops, count_flops, flop_costs, parameter_costs, stage_of
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.surgery import shrink

IDS = ["basic", "bottleneck"]


def hand_count(model: FusionModel, batch: FrameBatch) -> tuple[dict[str, float], dict[str, float]]:
    """2 x MAC of every convolution and linear layer by its shapes: padded, and real with table entries counted."""
    padded: dict[str, float] = {}
    real: dict[str, float] = {}

    def record(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, GatherConv):
                out_channels, *kernel, in_channels = module.weight.shape
                rows, tables = inputs
                entries = [row for table in tables for row in table.flatten().tolist()]
                assert kernel in ([3, 3, 3], [1, 1, 3])
                padded[name] = 2.0 * len(entries) * in_channels * out_channels
                pairs = sum(1 for row in entries if row != rows.shape[0])
                real[name] = 2.0 * pairs * in_channels * out_channels
                return
            at = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
            channels = at.shape[-1] if isinstance(module, nn.Linear) else at.shape[1]
            padded[name] = real[name] = 2.0 * at.numel() / channels * module.weight.numel()

        return hook

    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, GatherConv)
    handles = [m.register_forward_hook(record(n)) for n, m in model.named_modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    lifted = model.view_transform.depthnet[-1].weight.shape[0] - model.view_transform.depth_bins  # type: ignore[operator,union-attr]
    padded["view_transform.pooling"] = real["view_transform.pooling"] = 2.0 * batch["pool_depth"].numel() * lifted
    return padded, real


def attention_flops(config: ModelConfig) -> dict[str, float]:
    """Products of one frame's attention outside its linear layer: packed projection, scores, mixing."""
    queries, embed = config.head.proposals, config.head.embed
    cells = math.prod(config.geometry.bev_shape)
    found = {}
    for name, keys in (("self_attn", queries), ("cross_attn", cells)):
        macs = (queries + 2 * keys) * embed * embed + 2 * queries * keys * embed
        found[f"bbox_head.decoder.0.{name}.attn"] = 2.0 * macs
    return found


@pytest.mark.parametrize("config", [BASIC, BOTTLENECK], ids=IDS)
@pytest.mark.parametrize("frames", [1, 2])
def test_every_layer_equals_the_hand_count(config: ModelConfig, frames: int) -> None:
    model, batch = fusion_model(config), frame_batch(config.geometry, frames)
    report = count_flops(model, batch)
    padded, real = hand_count(model, batch)
    expected = {name: flops / frames for name, flops in padded.items()} | attention_flops(config)
    assert {layer.name: layer.padded for layer in report.layers} == pytest.approx(expected)
    sparse = {layer.name: layer.real for layer in report.layers if layer.stage == "lidar"}
    assert sparse == pytest.approx({name: flops / frames for name, flops in real.items() if name in sparse})
    assert report.total("real") < report.total("padded") == pytest.approx(sum(expected.values()))
    stages = report.by_stage()
    assert list(stages) == ["camera", "view", "lidar", "fusion", "head"]
    assert sum(stages.values()) == pytest.approx(report.total())
    assert all(flops > 0 for flops in stages.values())
    assert report.to_json()["total_real"] == pytest.approx(sum(report.by_stage("real").values()))


@pytest.mark.parametrize("config", [BASIC, BOTTLENECK, SWIN], ids=[*IDS, "swin"])
def test_analytic_costs_equal_those_of_the_shrunk_model(config: ModelConfig) -> None:
    model, batch = fusion_model(config), frame_batch(config.geometry)
    groups = fusion_groups(model)
    report = count_flops(model, batch)
    keep = random_keep(groups, 3)
    widths = {name: len(index) for name, index in keep.items()}
    shrunk = shrink(model, groups, keep)
    after = count_flops(shrunk, batch)
    assert flop_costs(model, report, groups).total(widths) == pytest.approx(after.total())
    assert flop_costs(model, report, groups, "real").total(widths) == pytest.approx(after.total("real"))
    parameters = parameter_costs(model, groups)
    assert parameters.dense == sum(p.numel() for p in model.parameters())
    assert parameters.total(widths) == sum(p.numel() for p in shrunk.parameters())
    channels = channel_costs(groups)
    assert channels.removed_share(widths) == pytest.approx(1 - sum(widths.values()) / sum(g.width for g in groups))


def test_saving_of_one_group_is_the_difference_of_totals() -> None:
    model, batch = fusion_model(BOTTLENECK), frame_batch(BOTTLENECK.geometry)
    groups = fusion_groups(model)
    cost = flop_costs(model, count_flops(model, batch), groups)
    widths = {name: len(index) for name, index in random_keep(groups, 1).items()}
    for group in groups:
        expected = cost.total(widths) - cost.total({**widths, group.name: 1})
        assert cost.saving(widths, group.name, 1) == pytest.approx(expected, abs=1e-6 * cost.dense)


def test_counting_leaves_the_model_alone() -> None:
    model, batch = fusion_model(BASIC).train(), frame_batch(BASIC.geometry)
    model.img_backbone.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    count_flops(model, batch)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_prunable_layer_without_flops_is_an_error() -> None:
    model = fusion_model(BASIC)
    only = FlopReport(layers=(LayerFlops(name="fusion_layer.0", stage="fusion", padded=1.0, real=1.0),))
    with pytest.raises(PruningError, match=r"no FLOPs were counted for img_backbone\.conv1\.weight"):
        flop_costs(model, only, fusion_groups(model))


def test_stages_and_unknown_tensors() -> None:
    assert stage_of("view_transform.downsample.0") == "view"
    assert stage_of("view_transform.depthnet.0") == "camera"
    assert stage_of("something") == "other"
    with pytest.raises(PruningError, match="nothing"):
        CostModel({"a": (2, 3)}, {"nothing": 1.0}, ())
