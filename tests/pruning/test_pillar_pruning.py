"""Pruning with a pillar encoder: mask equivalence, and FLOPs against counts by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fusion_toys import SMALL, frame_batch, fusion_model, outputs_of
from test_groups import bev_maps, in_float64, random_keep

from altermoma.models.config import BevConfig, HeadConfig, ModelConfig, PillarConfig
from altermoma.pruning.flops import count_flops, flop_costs
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.surgery import mask, shrink

PILLARS = ModelConfig(
    geometry=dataclasses.replace(
        SMALL,
        lidar="pillars",
        voxel_size=(0.4, 0.4, 6.0),
        max_points_per_voxel=3,
        lidar_levels=0,
        head_stride=2,
        pool_cell=0.4,
    ),
    lidar=PillarConfig(widths=(12, 20, 14)),
    bev=BevConfig(fuser=24, widths=(16, 24, 32), layers=(1, 1, 1), strides=(1, 2, 2), neck=(12, 16, 20)),
    head=HeadConfig(proposals=12),
)
FIRST, SECOND, THIRD = (f"pts_voxel_encoder.pfn_layers.{index}.linear" for index in range(3))


def test_groups_of_the_encoder() -> None:
    """Every layer but the last puts half its width out; a channel is read twice: per point, and as the maximum."""
    groups = {group.name: group for group in fusion_groups(fusion_model(PILLARS))}
    assert {name: group.width for name, group in groups.items() if group.partition == "lidar"} == {
        FIRST: 6,
        SECOND: 10,
        THIRD: 14,
    }
    read = [(m.tensor, m.dim, m.offset) for m in groups[SECOND].members if not m.produces]
    assert read == [(f"{THIRD}.weight", 1, 0), (f"{THIRD}.weight", 1, 10)]
    assert [(m.tensor, m.offset) for m in groups[THIRD].members if not m.produces] == [("fusion_layer.0.weight", 32)]


def test_shrunk_equals_masked() -> None:
    model, batch = in_float64(fusion_model(PILLARS), frame_batch(PILLARS.geometry, frames=2))
    groups = fusion_groups(model)
    dense = outputs_of(model, batch)
    for seed in range(3):
        keep = random_keep(groups, seed)
        shrunk, masked = outputs_of(shrink(model, groups, keep), batch), outputs_of(mask(model, groups, keep), batch)
        for key, found in shrunk.items():
            torch.testing.assert_close(found, masked[key], rtol=0, atol=1e-9)
        assert (dense["dense_heatmap"] - masked["dense_heatmap"]).abs().max() > 1e-2


def test_shrunk_equals_masked_in_float32() -> None:
    model, batch = fusion_model(PILLARS), frame_batch(PILLARS.geometry)
    groups = fusion_groups(model)
    keep = random_keep(groups, 7)
    with torch.no_grad():
        found, expected = (bev_maps(cut(model, groups, keep), batch) for cut in (shrink, mask))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("frames", [1, 2])
def test_flops_by_hand(frames: int) -> None:
    model, batch = fusion_model(PILLARS), frame_batch(PILLARS.geometry, frames)
    # One row per point, and one of zeros per pillar that is not full.
    is_point = batch["points"].any(dim=1).numpy()
    per_pillar = np.bincount(batch["point_pillar"].numpy()[is_point])
    points, rows = int(per_pillar.sum()), int(np.minimum(per_pillar + 1, 3).sum())
    assert rows == len(is_point)
    report = {layer.name: layer for layer in count_flops(model, batch).layers}
    for name, reads, makes in ((FIRST, 10, 6), (SECOND, 12, 10), (THIRD, 20, 14)):
        assert report[name].padded == pytest.approx(2 * rows * reads * makes / frames)
        assert report[name].real == pytest.approx(2 * points * reads * makes / frames)
        assert report[name].stage == "lidar"
    # Fuser at 40 x 40; neck: 2 x 2 cells of the finest level, as they are, each to 2 x 2 cells, all at 20 x 20.
    assert report["fusion_layer.0"].padded == 2 * 1600 * (32 + 14) * 9 * 24
    assert report["pts_neck.deblocks.0.0"].padded == 2 * 400 * 4 * 16 * 12
    assert report["pts_neck.deblocks.1.0"].padded == 2 * 400 * 24 * 16
    assert report["pts_neck.deblocks.2.0"].padded == 2 * 400 * 32 * 20


@pytest.mark.parametrize("pairs", ["padded", "real"])
def test_analytic_costs_equal_those_of_the_shrunk_model(pairs: str) -> None:
    model, batch = fusion_model(PILLARS), frame_batch(PILLARS.geometry)
    groups = fusion_groups(model)
    keep = random_keep(groups, 3)
    costs = flop_costs(model, count_flops(model, batch), groups, pairs)  # type: ignore[arg-type]
    found = count_flops(shrink(model, groups, keep), batch)
    widths = {name: len(index) for name, index in keep.items()}
    assert costs.total(widths) == pytest.approx(found.total(pairs))  # type: ignore[arg-type]
