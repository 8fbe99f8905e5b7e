"""The loop and the loss on the real preset, with made-up frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_inputs import random_inputs
from training_standins import random_truth

from altermoma.data.dataset import Sample
from altermoma.models.batch import collate
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build
from altermoma.recipe import TrainRecipe
from altermoma.training.log import read_log
from altermoma.training.loop import StepReport, train
from altermoma.training.losses import detection_loss, task_loss


class Frames:
    """Two frames with random contents and boxes."""

    def __init__(self) -> None:
        geometry = build("bevfusion-tiny").config.geometry
        rng = np.random.default_rng(1)
        self.samples = [
            Sample(inputs=random_inputs(geometry, seed=i), truth=random_truth(rng, 6), token=f"f{i}") for i in range(2)
        ]

    tokens = ("a", "b")

    def __len__(self) -> int:
        return 2

    def batch(self, step: int, *, batch_size: int, seed: int, positions: Sequence[int] | None = None) -> list[Sample]:
        return [self.samples[(step + i) % 2] for i in (positions or range(batch_size))]


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def preset() -> FusionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("bevfusion-tiny")


class KilledError(Exception):
    pass


@pytest.mark.usefixtures("two_threads")
def test_resume_of_the_real_model_is_bit_identical_with_two_threads(tmp_path: Path, frames: Frames) -> None:
    recipe = TrainRecipe(steps=2, batch_size=2, checkpoint_every=1, ema_decay=0.9)
    whole = train(preset(), frames, recipe, folder=tmp_path / "whole").model.state_dict()

    def kill(report: StepReport) -> None:
        if report.step == 1:
            raise KilledError

    with pytest.raises(KilledError):
        train(preset(), frames, recipe, folder=tmp_path / "cut", on_step=kill)
    resumed = train(preset(), frames, recipe, folder=tmp_path / "cut")
    assert resumed.resumed_from == 1
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.model.state_dict().items())


def test_a_masked_branch_is_left_alone_and_the_other_learns(tmp_path: Path, frames: Frames) -> None:
    recipe = TrainRecipe(steps=1, batch_size=1, masked="lidar", warmup_share=0.0)
    model, before = preset(), preset().state_dict()
    train(model, frames, recipe, folder=tmp_path)
    changed = {model.partition_of(k) for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"camera", "fusion"}


def test_one_frame_is_soon_overfitted(tmp_path: Path, frames: Frames) -> None:
    recipe = TrainRecipe(steps=16, batch_size=1, lr=2e-3, seed=1, match_radius=4.0)
    frames_of_one = Frames.__new__(Frames)
    frames_of_one.samples = [frames.samples[0]] * 2
    log = read_log(train(preset(), frames_of_one, recipe, folder=tmp_path).log)
    assert log[-1]["heatmap"] < 0.5 * log[0]["heatmap"]


def test_task_loss_is_the_detection_loss_and_has_gradients_for_the_live_branch_only(frames: Frames) -> None:
    model = preset().train(False)
    batch = collate([s.inputs for s in frames.samples], model.config.geometry)
    truths = [s.truth for s in frames.samples]
    loss = task_loss(model, batch, truths, masked="camera")
    with torch.no_grad():
        expected = detection_loss(model(batch, masked="camera"), truths, model.config.geometry).total
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert not model.training
    loss.backward()
    alive = {model.partition_of(n) for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    assert alive == {"lidar", "fusion"}
