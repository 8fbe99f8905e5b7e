"""Depth supervision and the teacher's loss against computations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic_inputs import random_inputs

from altermoma.geometry import Geometry, ImageGeometry
from altermoma.models.batch import collate
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.surgery import kept_entries, shrink, shrink_state
from altermoma.training.depth import captured_depth_logits, depth_loss
from altermoma.training.distill import Maps, Teacher, captured_maps

GEOMETRY = Geometry(image=ImageGeometry(cameras=1, height=16, width=24), depth_bins=(1.0, 6.0, 1.0))


def test_depth_loss_is_the_cross_entropy_of_each_cells_nearest_return() -> None:
    depth = torch.zeros(1, 1, 16, 24)
    depth[0, 0, 3, 2], depth[0, 0, 5, 6] = 4.2, 2.4  # one cell, the nearer counts: bin 1
    depth[0, 0, 12, 20] = 5.6  # bin 5 is beyond the last: no target
    depth[0, 0, 9, 9] = 3.6  # bin 3
    logits = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = {(0, 0): 1, (1, 1): 3}
    expected = -np.mean([logits[0, :, r, c].log_softmax(0)[b].item() for (r, c), b in chosen.items()])
    assert depth_loss(logits, depth, GEOMETRY).item() == pytest.approx(expected)
    assert depth_loss(logits, torch.zeros_like(depth), GEOMETRY).item() == 0.0


@pytest.fixture(scope="module")
def dense() -> FusionModel:
    torch.manual_seed(0)
    return build("bevfusion-tiny").eval()


@torch.no_grad()
def test_depth_logits_are_those_the_weights_come_from(dense: FusionModel) -> None:
    geometry = dense.config.geometry
    batch = collate([random_inputs(geometry)], geometry)
    with captured_depth_logits(dense) as logits:
        weights, _ = dense.lift(batch["images"], batch["depth"])
    torch.testing.assert_close(logits[0].softmax(1).permute(0, 2, 3, 1), weights)


def everything(layer: str, model: FusionModel) -> torch.Tensor:
    return torch.arange(model.get_parameter(layer).shape[1])


@torch.no_grad()
def test_a_teacher_finds_no_fault_with_itself(dense: FusionModel) -> None:
    geometry = dense.config.geometry
    batch = collate([random_inputs(geometry)], geometry)
    teacher = Teacher(
        model=dense,
        fuser_channels=everything("fusion_layer.0.weight", dense),
        head_channels=everything("bbox_head.shared_conv.weight", dense),
    )
    with captured_maps(dense) as maps:
        dense(batch)
    assert teacher.loss(batch, maps).item() == 0.0
    worse = Maps(fuser=[2 * maps.fuser[0]], head=maps.head, heatmap=maps.heatmap)
    assert teacher.loss(batch, worse).item() == pytest.approx(1.0, rel=1e-5)


def test_kept_entries_are_those_that_surgery_keeps(dense: FusionModel) -> None:
    groups = fusion_groups(dense)
    generator = torch.Generator().manual_seed(3)
    keep = {g.name: torch.randperm(g.width, generator=generator)[: g.width // 2].sort().values for g in groups}
    state = dict(dense.state_dict())
    student = shrink(dense, groups, keep)
    for layer in ("fusion_layer.0.weight", "bbox_head.shared_conv.weight"):
        size = state[layer].shape[1]
        state[layer] = torch.arange(size, dtype=torch.float32)[None, :, None, None].expand_as(state[layer])
        expected = shrink_state(state, groups, keep)[layer][0, :, 0, 0].long()
        found = kept_entries(groups, keep, layer, 1, size)
        assert found.tolist() == expected.tolist()
        assert len(found) == student.get_parameter(layer).shape[1] < size
