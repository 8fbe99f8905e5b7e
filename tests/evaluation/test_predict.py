"""Whole data sets through the torch model and through a plain function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from altermoma.data.dataset import FrameDataset
from altermoma.data.nuscenes import NuScenesReader
from altermoma.evaluation.predict import head_arrays, predict, predict_with
from altermoma.models.batch import collate
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build
from altermoma.ops.decode import decode


@pytest.fixture(scope="module")
def model() -> FusionModel:
    torch.manual_seed(0)
    return build("bevfusion-tiny")


@pytest.fixture(scope="module")
def dataset(tiny_nuscenes: Path, model: FusionModel) -> FrameDataset:
    reader = NuScenesReader(tiny_nuscenes, "v1.0-mini")
    return FrameDataset(reader, reader.tokens("mini_val"), model.config.geometry)


def _run(model: FusionModel, frames: list[dict[str, np.ndarray]], **options: str) -> dict[str, np.ndarray]:
    model.eval()
    with torch.no_grad():
        return head_arrays(model(collate(frames, model.config.geometry), **options))


@pytest.mark.parametrize("masked", ["none", "camera", "lidar"])
def test_predict_equals_batches_by_hand(model: FusionModel, dataset: FrameDataset, masked: str) -> None:
    found = predict(model, dataset, masked=masked, batch_size=3)
    assert list(found) == dataset.tokens
    frames = [sample.inputs for sample in dataset]
    expected = [
        *decode(_run(model, frames[:3], masked=masked), dataset.geometry),
        *decode(_run(model, frames[3:], masked=masked), dataset.geometry),
    ]
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert len(ours) == len(theirs) > 0
        np.testing.assert_allclose(ours.geometry_m9, theirs.geometry_m9, atol=1e-5)
        np.testing.assert_allclose(ours.scores_m, theirs.scores_m, atol=1e-6)


def test_masks_change_the_result(model: FusionModel, dataset: FrameDataset) -> None:
    results = [predict(model, dataset, masked=masked) for masked in ("none", "camera", "lidar")]
    scores = [np.concatenate([boxes.scores_m for boxes in found.values()]) for found in results]
    assert not np.allclose(scores[0][:100], scores[1][:100], atol=1e-6)
    assert not np.allclose(scores[0][:100], scores[2][:100], atol=1e-6)


def test_predict_with_any_backend(model: FusionModel, dataset: FrameDataset) -> None:
    found = predict_with(lambda inputs: _run(model, [inputs]), dataset)
    expected = predict(model, dataset, batch_size=1)
    for token, boxes in expected.items():
        np.testing.assert_allclose(found[token].geometry_m9, boxes.geometry_m9, atol=1e-5)
    middle = float(np.median(found[dataset.tokens[0]].scores_m))
    fewer = predict_with(lambda inputs: _run(model, [inputs]), dataset, score_threshold=middle)
    assert 0 < len(fewer[dataset.tokens[0]]) < len(found[dataset.tokens[0]])


def test_the_model_is_left_as_it_was(model: FusionModel, dataset: FrameDataset) -> None:
    model.train()
    model.img_backbone.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict(model, dataset, batch_size=1)
    assert model.training
    assert not model.img_backbone.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
