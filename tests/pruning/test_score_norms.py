"""Scores with batch norms that use the batch's own statistics: as training does, and nothing is left behind."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import pytest
import torch
from branch_toys import (
    TOY_GROUPS,
    TwoBranches,
    naive_gradient,
    naive_reactivated,
    naive_terms,
    toy_batches,
    toy_loss,
    toy_model,
)
from torch import Tensor, nn

from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.indicators import ChannelTerms, ScoringData, deci, reri
from altermoma.pruning.masking import bind, preserved
from altermoma.pruning.methods.choose import scores_of
from altermoma.pruning.methods.work import weight_work
from altermoma.recipe import PruneRecipe

LR = 0.05


def assert_sums(found: ChannelVectors, parts: Sequence[dict[str, list[float]]]) -> None:
    for name, vector in found.items():
        expected = torch.tensor([part[name] for part in parts], dtype=torch.float64).sum(0)
        torch.testing.assert_close(vector, expected, rtol=1e-10, atol=1e-14)
    assert found.keys() == parts[0].keys()


def theta_of(model: TwoBranches) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_deci_as_in_training() -> None:
    model, batches = toy_model(), toy_batches(3)
    before = copy.deepcopy(model.state_dict())
    terms = ChannelTerms(model, TOY_GROUPS, "channel")
    found = deci(model, bind(model, toy_loss), batches, terms, norms="batch")
    theta = theta_of(model)
    assert_sums(found, [naive_terms(theta, naive_gradient(model, b, "none", train=True), "channel") for b in batches])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    running = deci(model, bind(model, toy_loss), batches, terms, norms="running")
    assert any(not torch.allclose(running[name], found[name], rtol=1e-2) for name in found)


def test_what_a_norm_takes_out_again_counts_for_nothing() -> None:
    """Scaling a whole layer before a norm of the batch leaves the loss as it is: its terms sum to zero."""
    model, (batch,) = toy_model(), toy_batches(1)
    theta = theta_of(model)
    slope = naive_gradient(model, batch, "none", train=True)["cam1.weight"]
    assert abs(float((theta["cam1.weight"] * slope).sum())) < 1e-5 * float((theta["cam1.weight"] * slope).abs().sum())


@pytest.mark.parametrize("masked", ["camera", "lidar"])
def test_reri_as_in_training(masked: str) -> None:
    model, batches = toy_model(), toy_batches(4)
    data = ScoringData(reactivation=batches, terms=batches[:2], starts_together=True, norms="batch")
    terms, loss = ChannelTerms(model, TOY_GROUPS, "element"), bind(model, toy_loss)
    found = reri(model, loss, data, terms, masked, LR)  # type: ignore[arg-type]
    later, theta = naive_reactivated(model, batches, masked, LR, train=True), theta_of(model)
    parts = []
    for batch in batches[:2]:
        first, last = (naive_gradient(side, batch, masked, train=True) for side in (model, later))
        parts.append(naive_terms(theta, {name: first[name] - last[name] for name in theta}, "element"))
    assert_sums(found, parts)


def test_modes_and_statistics_come_back_and_frozen_norms_stay() -> None:
    model, (batch,) = toy_model(), toy_batches(1)
    model.eval()
    model.fuse_bn.train()
    model.lid_bn.requires_grad_(requires_grad=False)
    before = copy.deepcopy(model.state_dict())
    with preserved(model, "batch"):
        assert [norm.training for norm in (model.cam_bn, model.lid_bn, model.fuse_bn)] == [True, False, True]
        toy_loss(model, *batch, "none")
        assert not torch.equal(model.cam_bn.running_mean, before["cam_bn.running_mean"])
        assert torch.equal(model.lid_bn.running_mean, before["lid_bn.running_mean"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [part.training for part in model.modules() if isinstance(part, nn.BatchNorm2d)] == [False, False, True]


@pytest.mark.parametrize("method", ["altermoma", "snip"])
def test_the_recipe_decides(method: str) -> None:
    model, batches = toy_model(), toy_batches(2)
    recipe = PruneRecipe(
        method=method,  # type: ignore[arg-type]
        amount=0.5,
        beta=0.0,
        score_rounds=1,
        score_batches=2,
        reactivation_batches=1,
        reri_batches=1,
        batch_size=2,
        norms="batch",
    )
    found = {}
    for norms in ("batch", "running"):
        asked = dataclasses.replace(recipe, norms=norms)  # type: ignore[arg-type]
        found[norms] = scores_of(weight_work(model, batches, asked, toy_loss, batches[0][0])).scores  # type: ignore[arg-type]
    theta = theta_of(model)
    slopes = [naive_gradient(model, batch, "none", train=True) for batch in batches]
    terms = [theta["lid1.weight"] * slope["lid1.weight"] for slope in slopes]
    expected = sum(terms).abs() if method == "snip" else sum(term.abs() for term in terms)  # type: ignore[union-attr]
    share = expected.flatten() / expected.sum()  # type: ignore[union-attr]
    lid = found["batch"]["lid1.weight"].double()
    torch.testing.assert_close(lid / lid.sum(), share, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(found["running"]["lid1.weight"], found["batch"]["lid1.weight"], rtol=1e-2)
