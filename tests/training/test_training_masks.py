"""Masked weights stay exactly zero through everything that could move them; nothing else is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_training_loop import RECIPE, KilledError, ToyData, objective, run, same, toy
from torch import nn

from altermoma.data.dataset import Sample
from altermoma.errors import CheckpointError, PruningError
from altermoma.training.loop import StepReport, train
from altermoma.training.losses import LossTerms

NAMES = ("layers.0.weight", "layers.4.weight")


def masks(share: float = 0.5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = dict(toy().named_parameters())
    return {name: torch.rand(weights[name].shape, generator=generator) >= share for name in NAMES}


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_masked_weights_are_zero_after_every_step_and_in_the_average(tmp_path: Path, ema_decay: float) -> None:
    stays, model, seen = masks(), toy(), 0

    def look(report: StepReport) -> None:
        nonlocal seen
        seen += 1
        for name, mask in stays.items():
            assert not model.get_parameter(name)[~mask].any()
            assert not report.weights()[name][~mask].any()

    recipe = dataclasses.replace(RECIPE, ema_decay=ema_decay, weight_decay=0.3)
    result = train(model, ToyData(), recipe, folder=tmp_path, objective=objective, on_step=look, masks=stays)
    assert seen == RECIPE.steps
    for name, mask in stays.items():
        weight = result.model.get_parameter(name)
        assert not weight[~mask].any()
        assert bool((weight[mask] != toy().get_parameter(name)[mask]).all())


def test_a_masked_run_is_that_of_the_smaller_network(tmp_path: Path) -> None:
    """A whole hidden unit masked: clipping, momentum and decay of the others are as if it had never been there."""

    class Small(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    torch.manual_seed(5)
    wide, narrow = Small(8).double(), Small(6).double()
    with torch.no_grad():
        narrow.layers[0].weight.copy_(wide.layers[0].weight[:6])
        narrow.layers[2].weight.copy_(wide.layers[2].weight[:, :6])
    stays = {name: torch.ones_like(p, dtype=torch.bool) for name, p in wide.named_parameters()}
    # Only the incoming weights are masked: the outgoing ones of a silent unit have no gradient by themselves.
    stays["layers.0.weight"][6:] = False
    recipe = dataclasses.replace(RECIPE, steps=30, grad_clip=0.5, weight_decay=0.0, ema_decay=0.0)

    def loss(model: nn.Module, samples: Sequence[Sample]) -> LossTerms:
        x = torch.cat([torch.from_numpy(s.inputs["x"]) for s in samples]).double()
        value = (model(x)[:, 0] - x.sum(dim=1)).square().mean()
        return LossTerms(total=value, heatmap=value, classes=value, boxes=value, matched=0, overlap=0.0)

    train(wide, ToyData(), recipe, folder=tmp_path / "wide", objective=loss, masks=stays)
    train(narrow, ToyData(), recipe, folder=tmp_path / "narrow", objective=loss)
    torch.testing.assert_close(wide.layers[0].weight[:6], narrow.layers[0].weight, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("none", [None, {}])
def test_no_masks_change_nothing_and_continue_runs_without(
    tmp_path: Path, none: dict[str, torch.Tensor] | None
) -> None:
    whole = run(tmp_path)
    again = run(tmp_path, masks=none)
    assert again.resumed_from == RECIPE.steps
    assert same(run(tmp_path / "fresh", masks=none).model, whole.model)


def test_masks_of_ones_give_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    ones = {name: torch.ones_like(mask) for name, mask in masks().items()}
    assert same(run(tmp_path / "masked", masks=ones).model, run(tmp_path / "plain").model)


def test_a_masked_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", masks=masks())

    def kill(report: StepReport) -> None:
        if report.step == 8:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path / "cut", masks=masks(), on_step=kill)
    resumed = run(tmp_path / "cut", masks=masks())
    assert resumed.resumed_from == 5
    assert same(whole.model, resumed.model)


def test_other_masks_are_another_run(tmp_path: Path) -> None:
    run(tmp_path, masks=masks())
    for other in (masks(seed=1), None):
        with pytest.raises(CheckpointError, match="another run"):
            run(tmp_path, masks=other)


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("layers.9.weight", torch.ones(8, 3, dtype=torch.bool)),
        ("layers.0.weight", torch.ones(8, 4, dtype=torch.bool)),
        ("layers.0.weight", torch.ones(8, 3)),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path: Path, name: str, mask: torch.Tensor) -> None:
    with pytest.raises(PruningError, match=name):
        run(tmp_path, masks={name: mask})
