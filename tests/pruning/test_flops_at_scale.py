"""FLOPs of a preset at the paper's scale on real sensor data: against torch's counter and three layers by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from altermoma.data.nuscenes import NuScenesReader
from altermoma.models.batch import collate
from altermoma.models.presets import build
from altermoma.ops.prepare import FramePreparer
from altermoma.pruning.flops import count_flops

pytestmark = [pytest.mark.slow, pytest.mark.real]


def neighbour_pairs(points_p5: np.ndarray) -> int:
    """Pairs of occupied voxels that a submanifold 3x3x3 convolution joins, by looking every neighbour up."""
    low, high, size = np.array([-54, -54, -5.0]), np.array([54, 54, 3.0]), np.array([0.075, 0.075, 0.2])
    inside = points_p5[((points_p5[:, :3] >= low) & (points_p5[:, :3] < high)).all(axis=1), :3]
    cells = np.unique(np.floor((inside.astype(np.float32) - low.astype(np.float32)) / size.astype(np.float32)), axis=0)
    assert len(cells) < 160000
    keys = ((cells + 1) @ np.array([2000 * 60, 60, 1])).astype(np.int64)
    offsets = (np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3) @ np.array([2000 * 60, 60, 1])).tolist()
    return sum(int(np.isin(keys + offset, keys).sum()) for offset in offsets)


def test_the_counter_equals_torchs_and_hand_counts(real_nuscenes: Path, real_sweeps: np.ndarray) -> None:
    model = build("bevfusion-mit-r101-second").eval()
    geometry = model.config.geometry
    reader = NuScenesReader(real_nuscenes, "v1.0-mini", sweeps=1)
    frame = dataclasses.replace(reader.read(reader.tokens("mysplit")[0]), points_p5=real_sweeps)
    batch = collate([FramePreparer(geometry).prepare(frame)], geometry)
    report = count_flops(model, batch)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(batch)
    assert report.total() == pytest.approx(counter.get_total_flops(), rel=1e-6)
    layers = {layer.name: layer for layer in report.layers}
    stem, fuser = layers["img_backbone.conv1"], layers["fusion_layer.0"]
    assert stem.padded == stem.real == 2 * (6 * 128 * 352) * 64 * (3 * 7 * 7)
    assert fuser.padded == fuser.real == 2 * (180 * 180) * 256 * (336 * 3 * 3)
    first = layers["pts_middle_encoder.conv_input.0"]
    assert first.real == pytest.approx(2 * 5 * 16 * neighbour_pairs(real_sweeps), rel=2e-4)
    assert first.padded > first.real
