"""The pillar encoder against the padded network written out, in evaluation, in training and without points."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from altermoma.errors import RecipeError
from altermoma.geometry import Geometry
from altermoma.models.batch import collate
from altermoma.models.config import LidarConfig, ModelConfig, PillarConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.pillars import PillarEncoder
from altermoma.models.presets import config_of
from altermoma.ops.pillars import PillarBuilder

GEOMETRY = Geometry(
    lidar="pillars",
    point_range=(-4.0, -3.2, -2.0, 4.0, 3.2, 2.0),
    voxel_size=(0.4, 0.4, 4.0),
    lidar_levels=0,
    max_points_per_voxel=5,
)
NUSCENES = config_of("bevfusion-mit-r101-pointpillars").geometry


def cloud(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 5)) * [1.8, 1.5, 0.6, 3, 0.1]).astype(np.float32)


def encoder(geometry: Geometry = GEOMETRY, widths: tuple[int, ...] = (16, 24, 20)) -> PillarEncoder:
    torch.manual_seed(0)
    made = PillarEncoder(PillarConfig(widths=widths), 10, geometry.fused_shape).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, -1.0, 1.0)  # both signs: the maximum comes after the norm
            nn.init.normal_(module.bias)
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return made


def padded(tensors: dict[str, Tensor]) -> Tensor:
    """Decorated points in slots, zeros in empty ones: [N, T, C]."""
    return tensors["points"][tensors["pillar_table"].long()]


def padded_network(made: PillarEncoder, slots_ntc: Tensor) -> Tensor:
    """PointNet on [pillars, slots], with torch's own batch norm over both: [N, C]."""
    x = slots_ntc
    for layer in made.pfn_layers:
        norm = layer.norm
        linear = x @ layer.linear.weight.T
        flat = nn.functional.batch_norm(
            linear.transpose(1, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias,
            made.training, norm.momentum, norm.eps,
        )  # fmt: skip
        x = flat.transpose(1, 2).relu()
        most = x.max(dim=1, keepdim=True).values
        x = torch.cat([x, most.expand_as(x)], dim=2)
    return most[:, 0]


def dense(pillars_nc: Tensor, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """Cell by cell: [1, C, X, Y]."""
    out = pillars_nc.new_zeros(pillars_nc.shape[1], shape[0] * shape[1])
    for cell, pillar in enumerate(tensors["bev_table"][:, 0].tolist()):
        if pillar < len(pillars_nc):
            out[:, cell] = pillars_nc[pillar]
    return out.reshape(1, -1, *shape)


def inputs(points: np.ndarray, geometry: Geometry = GEOMETRY, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    arrays = PillarBuilder(geometry)(points).inputs()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return tensors | {"points": tensors["points"].to(dtype)}


@torch.no_grad()
@pytest.mark.parametrize("widths", [(7,), (16, 24), (8, 12, 20)])
def test_equals_the_padded_network(widths: tuple[int, ...]) -> None:
    tensors, made = inputs(cloud(900)), encoder(widths=widths).double()
    expected = dense(padded_network(made, padded(tensors)), tensors, GEOMETRY.fused_shape)
    found = made(tensors, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (found != 0).any(dim=1).sum() > 100


@torch.no_grad()
def test_empty_slots_take_part_in_the_maximum_as_in_the_reference() -> None:
    """A lone point whose channel is below the norm's shift: the zeros beside it win."""
    made = encoder(widths=(3,)).double()
    norm = made.pfn_layers[0].norm
    nn.init.ones_(norm.weight), nn.init.ones_(norm.bias), nn.init.zeros_(norm.running_mean)  # type: ignore[arg-type]
    nn.init.constant_(made.pfn_layers[0].linear.weight, -1.0)  # type: ignore[arg-type]
    tensors = inputs(np.array([[1.0, 1.0, 1.0, 5.0, 0.0]], np.float32))
    torch.testing.assert_close(made(tensors, 1).amax(dim=(2, 3)), torch.ones(1, 3).double())


def test_training_has_the_statistics_and_gradients_of_the_padded_network() -> None:
    tensors, ours = inputs(cloud(900)), encoder().double().train()
    theirs = copy.deepcopy(ours)
    # One more pass than the first, so that the running statistics feel the momentum twice.
    for _ in range(2):
        found = ours(tensors, 1)
        expected = dense(padded_network(theirs, padded(tensors)), tensors, GEOMETRY.fused_shape)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-8, msg=name)
    for layer, other_layer in zip(ours.pfn_layers, theirs.pfn_layers, strict=True):
        assert layer.norm.num_batches_tracked == 2
        torch.testing.assert_close(layer.norm.running_mean, other_layer.norm.running_mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer.norm.running_var, other_layer.norm.running_var, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_batch_equals_its_frames_and_may_hold_an_empty_one() -> None:
    made = encoder()
    frames = [PillarBuilder(GEOMETRY)(cloud(count, seed)).inputs() for seed, count in enumerate((300, 0, 700))]
    together = made(collate(frames, GEOMETRY).tensors, 3)
    for index, frame in enumerate(frames):
        alone = made(collate([frame], GEOMETRY).tensors, 1)[0]
        torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-5)
    assert not together[1].any()


def test_training_on_an_empty_cloud_changes_no_statistic() -> None:
    made = encoder().train()
    before = {name: tensor.clone() for name, tensor in made.named_buffers()}
    assert not made(inputs(cloud(0), dtype=torch.float32), 1).any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.named_buffers())


@torch.no_grad()
@pytest.mark.real
def test_ten_real_sweeps(real_sweeps: np.ndarray) -> None:
    tensors, made = inputs(real_sweeps, NUSCENES, torch.float32), encoder(NUSCENES, (64, 64))
    found = made(tensors, 1)
    pillars = padded_network(made.double(), padded(tensors)[::7].double())
    cells = torch.argsort(tensors["bev_table"][:, 0])[: len(tensors["pillar_table"]) : 7]
    expected = pillars.float()
    torch.testing.assert_close(found[0].flatten(1)[:, cells].T, expected, rtol=0, atol=2e-5 * float(expected.max()))


@pytest.mark.parametrize("lidar", [LidarConfig(), PillarConfig()])
def test_geometry_and_encoder_must_agree(lidar: LidarConfig | PillarConfig) -> None:
    geometry = GEOMETRY if isinstance(lidar, LidarConfig) else Geometry()
    with pytest.raises(RecipeError, match=rf"geometry of {geometry.lidar} with a {type(lidar).__name__}"):
        FusionModel(ModelConfig(geometry=geometry, lidar=lidar))
