"""The map head against torch's grid sampling, through the stages, pruning and export."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from synthetic_inputs import random_inputs
from torch import Tensor, nn

from altermoma.export.contract import contract_folders, parse_contract
from altermoma.export.parity import compare_stage, open_session, run_session
from altermoma.export.to_onnx import export_stage
from altermoma.frames import MAP_CLASSES
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.models.batch import collate
from altermoma.models.config import HeadConfig, MapConfig, ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.head import MapOutputs
from altermoma.models.map_head import GridTransform
from altermoma.models.presets import PRESETS, config_of
from altermoma.models.stages import HeadStage
from altermoma.ops.decode import decode_map
from altermoma.pruning.channels import ChannelGroup
from altermoma.pruning.flops import count_flops, flop_costs
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.surgery import mask, shrink

MAP = MapConfig(low=-9.0, cell=0.3, cells=60)
"""Reaches over the edge of SMALL, so that some cells lie outside and some half."""

SMALL = ModelConfig(
    geometry=Geometry(
        image=ImageGeometry(cameras=2, height=48, width=96),
        point_range=(-8.0, -8.0, -3.0, 8.0, 8.0, 3.0),
        depth_bins=(1.0, 9.0, 1.0),
        fan_in=(16, 16, 4),
    ),
    head=HeadConfig(proposals=12),
    map=MAP,
)


def small_model() -> FusionModel:
    torch.manual_seed(0)
    model = FusionModel(SMALL).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model


def mit_transform(bev: Tensor, geometry: Geometry, config: MapConfig) -> Tensor:
    """BEVGridTransform of mit-han-lab/bevfusion from the one grid to the other, in bev's precision."""
    coordinates = []
    for axis in range(2):
        low, high = geometry.point_range[axis], geometry.point_range[axis + 3]
        stop = config.low + config.cell * config.cells
        centres = torch.arange(config.low + config.cell / 2, stop - 1e-6, config.cell, dtype=bev.dtype)
        coordinates.append((centres - low) / (high - low) * 2 - 1)
    u, v = torch.meshgrid(coordinates, indexing="ij")
    grid = torch.stack([v, u], dim=-1).expand(len(bev), -1, -1, -1)
    return F.grid_sample(bev, grid, mode="bilinear", align_corners=False)


GRIDS = [
    (config_of("bevfusion-mit-swint-voxelnet-map").geometry, MapConfig()),
    (config_of("bevfusion-mit-r101-second").geometry, MapConfig()),
    (SMALL.geometry, MAP),
    (dataclasses.replace(SMALL.geometry, point_range=(-8.0, -4.8, -3.0, 11.2, 8.0, 3.0)), MAP),
]


@pytest.mark.parametrize(("geometry", "config"), GRIDS, ids=["mit", "boxes", "beyond", "skew"])
def test_grid_transform_is_grid_sample(geometry: Geometry, config: MapConfig) -> None:
    bev = torch.rand(2, 3, *geometry.bev_shape, generator=torch.Generator().manual_seed(0))
    found = GridTransform(geometry, config)(bev)
    expected = mit_transform(bev.double(), geometry, config)
    assert found.shape == (2, 3, config.cells, config.cells)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)
    assert config is not MAP or bool((expected == 0).any()), "some cells must lie outside"


def test_the_preset_segments_as_bevfusion() -> None:
    config = config_of("bevfusion-mit-swint-voxelnet-map")
    assert config.map is not None
    assert (config.map.classes, config.map.cells) == (len(MAP_CLASSES), 200)
    assert (config.geometry.bev_shape, config.geometry.bev_cell) == ((128, 128), pytest.approx(0.8))
    assert [name for name, other in PRESETS.items() if other.map] == ["bevfusion-mit-swint-voxelnet-map"]
    plain = FusionModel(dataclasses.replace(SMALL, map=None)).state_dict().keys()
    extra = {name.removeprefix("map_head.") for name in FusionModel(SMALL).state_dict().keys() - plain}
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert extra == {
        "classifier.0.weight", "classifier.3.weight", "classifier.6.weight", "classifier.6.bias",
        *(f"classifier.{index}.{leaf}" for index in (1, 4) for leaf in norm),
    }  # fmt: skip


@torch.no_grad()
def test_model_and_stage_give_the_map_beside_unchanged_boxes() -> None:
    model = small_model()
    batch = collate([random_inputs(SMALL.geometry, seed=seed) for seed in range(2)], SMALL.geometry)
    outputs = model(batch)
    assert isinstance(outputs, MapOutputs)
    assert outputs.map.shape == (2, 6, 60, 60)
    assert float(outputs.map.std()) > 1e-3
    bev = model.fuse(model.camera_branch(batch), model.lidar_branch(batch))
    stage = HeadStage(model)
    found = dict(zip(stage.outputs, stage(bev), strict=True))
    torch.testing.assert_close(found["map"], outputs.map, rtol=0, atol=0)
    torch.testing.assert_close(found["heatmap"], model.bbox_head(bev).heatmap, rtol=0, atol=0)
    sampled = mit_transform(bev, SMALL.geometry, MAP)
    torch.testing.assert_close(outputs.map, model.map_head.classifier(sampled), rtol=0, atol=1e-4)


def some_channels(groups: tuple[ChannelGroup, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shuffled = {g.name: torch.randperm(g.width, generator=generator) for g in groups}
    return {name: index[: math.ceil(len(index) * 0.6)].sort().values for name, index in shuffled.items()}


@torch.no_grad()
def test_pruning_shrinks_the_classifier_exactly() -> None:
    model = small_model()
    groups = fusion_groups(model)
    hidden = {group.name: group for group in groups if group.name.startswith("map_head")}
    assert {name: group.partition for name, group in hidden.items()} == {
        "map_head.classifier.0": "fusion",
        "map_head.classifier.3": "fusion",
    }
    neck = next(group for group in groups if group.name == "pts_neck.deblocks.1.0")
    assert {m.tensor for m in neck.members if not m.produces} == {
        "bbox_head.shared_conv.weight",
        "map_head.classifier.0.weight",
    }
    batch = collate([random_inputs(SMALL.geometry)], SMALL.geometry)
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in batch.tensors.items()}
    batch, keep = dataclasses.replace(batch, tensors=tensors), some_channels(groups)
    dense = model.double()(batch).map
    shrunk, masked = (cut(model, groups, keep)(batch).map for cut in (shrink, mask))
    torch.testing.assert_close(shrunk, masked, rtol=0, atol=1e-9)
    assert (dense - masked).abs().max() > 1e-2


def test_flops_by_hand_and_after_pruning() -> None:
    model, batch = small_model(), collate([random_inputs(SMALL.geometry)], SMALL.geometry)
    report = count_flops(model, batch)
    counted = {layer.name: (layer.padded, layer.stage) for layer in report.layers if layer.name.startswith("map_head")}
    assert counted == {
        "map_head.classifier.0": (2 * 3600 * 64 * 64 * 9, "head"),
        "map_head.classifier.3": (2 * 3600 * 64 * 64 * 9, "head"),
        "map_head.classifier.6": (2 * 3600 * 64 * 6, "head"),
    }
    groups = fusion_groups(model)
    keep = some_channels(groups)
    found = count_flops(shrink(model, groups, keep), batch).total()
    widths = {name: len(index) for name, index in keep.items()}
    assert flop_costs(model, report, groups).total(widths) == pytest.approx(found)


def test_exported_head_gives_the_map() -> None:
    """bevfusion-tiny with a map: its contract with one more output."""
    model = FusionModel(ModelConfig(map=MapConfig(hidden=16))).eval()
    text = (contract_folders()[1] / "bevfusion-tiny.toml").read_text()
    spec = 'map = { dtype = "float32", shape = [1, 6, 200, 200], meaning = "class logits", unit = "1" }'
    contract = parse_contract(f"{text.rstrip()}\n{spec}\n")
    bev = np.random.default_rng(0).random((1, 64, 80, 80), dtype=np.float32)
    module = HeadStage(model)
    graph = export_stage(module, contract, "head", {"bev": bev})
    assert not {node.op_type for node in graph.graph.node} & {"GridSample", "Resize", "BatchNormalization"}
    assert any(node.name.startswith("map_head/transform/") for node in graph.graph.node)
    with torch.no_grad():
        outputs = module(torch.from_numpy(bev))
    expected = {name: tensor.numpy() for name, tensor in zip(module.outputs, outputs, strict=True)}
    found = run_session(open_session(graph), {"bev": bev})
    parity = {item.tensor: item for item in compare_stage("stage", contract.stage("head"), expected, found, 1e-4)}
    assert parity["map"].scaled_max < 1e-5
    probabilities = decode_map(found)
    assert probabilities is not None
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-expected["map"].astype(np.float64))), atol=1e-5)
    assert decode_map({}) is None
    assert np.abs(expected["map"]).max() > 1e-3
