"""The pillar encoder against mmdet3d's PillarFeatureNet and PointPillarsScatter, with the same random weights."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d_standins import hard_voxelize, make_importable
from torch import Tensor, nn

from altermoma.models.config import PillarConfig
from altermoma.models.pillars import PillarEncoder
from altermoma.models.presets import config_of
from altermoma.ops.pillars import PillarBuilder

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

GEOMETRY = config_of("bevfusion-mit-r101-pointpillars").geometry
WIDTHS = (64, 64)


@pytest.fixture(scope="module")
def mmdet3d() -> Any:
    """mmdet3d's modules, with the stand-ins for compiled code that its environment holds."""
    try:
        make_importable()
        return importlib.import_module("mmdet3d.models")
    except (ImportError, AssertionError) as error:
        pytest.skip(f"mmdet3d cannot be imported: {error}")


def networks(mmdet3d: Any) -> tuple[PillarEncoder, nn.Module, nn.Module]:
    """Ours, and theirs with the same weights."""
    torch.manual_seed(0)
    ours = PillarEncoder(PillarConfig(widths=WIDTHS), 10, GEOMETRY.fused_shape)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, -1.0, 1.0)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    theirs = mmdet3d.PillarFeatureNet(
        in_channels=5,
        feat_channels=WIDTHS,
        voxel_size=GEOMETRY.voxel_size,
        point_cloud_range=GEOMETRY.point_range,
        legacy=False,
    )
    state = ours.state_dict()
    first = state["pfn_layers.0.linear.weight"]
    # mmdet3d has the height above the pillar's centre as an eleventh column, which mit-han-lab/bevfusion has not.
    state["pfn_layers.0.linear.weight"] = torch.cat([first, torch.zeros(len(first), 1)], dim=1)
    theirs.load_state_dict(state)
    return ours, theirs, mmdet3d.PointPillarsScatter(in_channels=WIDTHS[-1], output_shape=GEOMETRY.fused_shape)


def theirs_of(points: np.ndarray, network: nn.Module, scatter: nn.Module) -> Tensor:
    """mmdet3d's network and canvas after hard voxelisation: [1, C, X, Y]."""
    most, limit = GEOMETRY.max_points_per_voxel, GEOMETRY.max_voxels
    voxels, cells, counts = torch.zeros(limit, most, 5), torch.zeros(limit, 3).int(), torch.zeros(limit).int()
    cloud = torch.from_numpy(points)
    found = hard_voxelize(cloud, voxels, cells, counts, GEOMETRY.voxel_size, GEOMETRY.point_range, most, limit)
    batch_zyx = torch.nn.functional.pad(cells[:found].flip(1), (1, 0))
    canvas = scatter(network(voxels[:found], counts[:found], batch_zyx), batch_zyx, 1)
    return canvas.transpose(2, 3)  # type: ignore[no-any-return]


def check(points: np.ndarray, mmdet3d: Any, *, training: bool) -> None:
    ours, theirs, scatter = networks(mmdet3d)
    ours.train(training), theirs.train(training)
    tensors = {name: torch.from_numpy(array) for name, array in PillarBuilder(GEOMETRY)(points).inputs().items()}
    with torch.no_grad():
        found, expected = ours(tensors, 1), theirs_of(points, theirs, scatter)
    assert found.shape == expected.shape
    assert int((expected != 0).any(dim=1).sum()) > 100
    error = float((found - expected).abs().max() / expected.abs().max())
    print(f"largest difference {error:.2e} of the largest value, training {training}")
    assert error < 1e-4
    for name, tensor in ours.named_buffers():
        torch.testing.assert_close(tensor, theirs.get_buffer(name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_random_cloud(mmdet3d: Any, training: bool) -> None:
    rng = np.random.default_rng(0)
    check((rng.standard_normal((5000, 5)) * [4, 4, 1, 3, 0.1]).astype(np.float32), mmdet3d, training=training)


@pytest.mark.real
@pytest.mark.parametrize("training", [False, True])
def test_ten_real_sweeps(mmdet3d: Any, real_sweeps: np.ndarray, training: bool) -> None:
    check(real_sweeps, mmdet3d, training=training)
