"""The detector as a whole: batching, masking, stages, rebuilding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from synthetic_inputs import random_inputs
from torch import nn

from altermoma.errors import CheckpointError, PruningError, RecipeError
from altermoma.models.attention import PackedAttention
from altermoma.models.batch import collate
from altermoma.models.config import HeadConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.head import TransFusionHead
from altermoma.models.presets import build
from altermoma.models.rebuild import load_by_shape
from altermoma.models.stages import stage_modules


@pytest.fixture(scope="module")
def model() -> FusionModel:
    torch.manual_seed(0)
    net = build("bevfusion-tiny")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@torch.no_grad()
def test_a_batch_equals_its_frames(model: FusionModel) -> None:
    geometry = model.config.geometry
    frames = [random_inputs(geometry, seed=seed, points=300 + 200 * seed) for seed in range(3)]
    together = model(collate(frames, geometry))
    for index, frame in enumerate(frames):
        alone = model(collate([frame], geometry))
        for field in dataclasses.fields(alone):
            joint = getattr(together, field.name)[index]
            torch.testing.assert_close(joint, getattr(alone, field.name)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_stages_chain_to_the_whole_model(model: FusionModel) -> None:
    geometry = model.config.geometry
    batch = collate([random_inputs(geometry, seed=5)], geometry)
    expected = model(batch)
    tensors = dict(batch.tensors)
    for stage in stage_modules(model).values():
        found = stage(*[tensors[name] for name in stage.inputs])
        tensors |= zip(stage.outputs, found if isinstance(found, tuple) else (found,), strict=True)
    for name in ("query_scores", "center", "height", "dim", "rot", "vel", "heatmap"):
        torch.testing.assert_close(tensors[name], getattr(expected, name), rtol=0, atol=0)
    assert tensors["query_labels"].dtype == torch.int32


@torch.no_grad()
@pytest.mark.parametrize(("masked", "channels"), [("camera", slice(0, 32)), ("lidar", slice(32, 96))])
def test_masking_a_branch_is_cutting_its_fusion_inputs(model: FusionModel, masked: str, channels: slice) -> None:
    geometry = model.config.geometry
    batch = collate([random_inputs(geometry, seed=2)], geometry)
    found = model(batch, masked=masked).dense_heatmap
    weight = model.fusion_layer[0].weight
    kept = weight.detach().clone()
    try:
        weight[:, channels] = 0
        expected = model(batch).dense_heatmap
    finally:
        weight.copy_(kept)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - model(batch).dense_heatmap).abs().max() > 1e-2


def test_attention_equals_torchs() -> None:
    torch.manual_seed(1)
    ours, theirs = PackedAttention(48, 4).double(), nn.MultiheadAttention(48, 4, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    query, key = torch.randn(2, 7, 48, dtype=torch.float64), torch.randn(2, 11, 48, dtype=torch.float64)
    torch.testing.assert_close(ours(query, key, key), theirs(query, key, key)[0])


@torch.no_grad()
def test_queries_are_the_highest_local_maxima(model: FusionModel) -> None:
    geometry = model.config.geometry
    found = model(collate([random_inputs(geometry, seed=3)], geometry))
    scores = found.dense_heatmap[0].sigmoid().numpy()
    candidates = []
    for label in range(10):
        for x in range(80):
            for y in range(80):
                border = x in (0, 79) or y in (0, 79)
                if label in (8, 9) or (
                    not border and scores[label, x, y] == scores[label, x - 1 : x + 2, y - 1 : y + 2].max()
                ):
                    candidates.append((scores[label, x, y], label, x, y))
    best = sorted(candidates, reverse=True)[:100]
    picked = found.query_scores[0].gather(0, found.query_labels[:1])[0]
    np.testing.assert_allclose(np.sort(picked)[::-1], [score for score, *_ in best], rtol=1e-6)


def test_gradients_of_label_embeddings_are_summed_in_a_fixed_order() -> None:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    head = TransFusionHead(8, (20, 20), HeadConfig())
    heatmap, cells, slope = torch.randn(8, 10, 20, 20), torch.randn(8, 400, 48), torch.randn(8, 100, 48)
    found = set()
    torch.set_num_threads(2)
    try:
        for _ in range(30):
            head.zero_grad()
            (head._propose(heatmap, cells, None)[2] * slope).sum().backward()
            found.add(head.class_encoding.weight.grad.numpy().tobytes())  # type: ignore[union-attr]
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_load_by_shape_takes_other_widths_and_refuses_other_models(model: FusionModel) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    keep = torch.arange(0, 32, 2)
    name = "img_backbone.layer1.0"
    for leaf in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        state[f"{name}.{leaf}"] = state[f"{name}.{leaf}"][keep]
    state[f"{name}.conv2.weight"] = state[f"{name}.conv2.weight"][:, keep]
    smaller = build("bevfusion-tiny")
    load_by_shape(smaller, state)
    block = smaller.img_backbone.layer1[0]
    assert (block.conv1.out_channels, block.bn1.num_features, block.conv2.in_channels) == (16, 16, 16)
    assert block(torch.zeros(1, 32, 8, 8)).shape == (1, 32, 8, 8)

    with pytest.raises(CheckpointError, match="missing"):
        load_by_shape(build("bevfusion-tiny"), {k: v for k, v in state.items() if "bbox_head" not in k})
    state["img_backbone.conv1.weight"] = torch.zeros(32, 3, 3, 3)
    with pytest.raises(CheckpointError, match=r"img_backbone\.conv1\.weight has shape"):
        load_by_shape(build("bevfusion-tiny"), state)


def test_every_parameter_has_a_partition(model: FusionModel) -> None:
    found = {model.partition_of(name) for name, _ in model.named_parameters()}
    assert found == {"camera", "lidar", "fusion"}
    with pytest.raises(PruningError, match="no partition"):
        model.partition_of("radar_backbone.conv1.weight")


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'bevfusion-tiny'"):
        build("bevfusion-tyni")
