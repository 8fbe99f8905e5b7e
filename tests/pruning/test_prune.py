"""Structured AlterMOMA from end to end on a small fusion model."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any, Literal

import pytest
import torch
from fusion_toys import BASIC, frame_batch, fusion_model
from torch import Tensor

from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.models.fusion import FusionModel
from altermoma.pruning.flops import count_flops
from altermoma.pruning.masking import bind
from altermoma.pruning.one_round import batches_needed, score
from altermoma.pruning.prune import prune, prune_by_scores
from altermoma.pruning.surgery import shrink
from altermoma.recipe import Partition, PruneRecipe

RECIPE = PruneRecipe(
    beta=1.0,
    unit="share",
    score_rounds=1,
    amount=0.5,
    channel_step=8,
    min_channels=8,
    score_batches=2,
    reactivation_batches=2,
    reri_batches=1,
    batch_size=1,
)


@cache
def batches() -> tuple[tuple[Any, Tensor], ...]:
    return tuple((frame_batch(BASIC.geometry, 1, seed), torch.full((1,), float(seed))) for seed in range(2))


def loss_fn(model: FusionModel, batch: Any, truths: Any, masked: Any) -> Tensor:
    """A stand-in for the task loss that reaches every branch."""
    found = model(batch, masked)
    terms = (found.dense_heatmap, found.height, found.dim, found.rot, found.vel, found.heatmap, found.center * 0.01)
    return sum(((term - truths) ** 2).mean() for term in terms)  # type: ignore[return-value]


@pytest.mark.parametrize("method", ["threshold", "greedy"])
@pytest.mark.parametrize(("budget", "amount"), [("flops", 0.5), ("channels", 0.3), ("params", 0.4)])
def test_budgets(
    budget: Literal["flops", "channels", "params"], amount: float, method: Literal["threshold", "greedy"]
) -> None:
    model = fusion_model(BASIC)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = dataclasses.replace(RECIPE, budget=budget, amount=amount, selection=method, beta=0.0)
    result = prune(model, batches(), recipe, loss_fn)
    assert result.got == pytest.approx(amount, abs=0.01)
    shares = {
        "flops": 1 - count_flops(result.model, batches()[0][0]).total() / result.flops_before.total(),
        "params": 1 - sum(p.numel() for p in result.model.parameters()) / result.params_before,
        "channels": 1 - sum(result.widths_after.values()) / sum(result.widths_before.values()),
    }
    assert shares[budget] == pytest.approx(result.got)
    assert all(width % 8 == 0 for width in result.widths_after.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert json.loads(json.dumps(result.to_json()))["widths_after"] == result.widths_after


def test_the_same_again_bit_for_bit() -> None:
    first, second = (prune(fusion_model(BASIC), batches(), RECIPE, loss_fn) for _ in range(2))
    assert all(torch.equal(vector, second.scores[name]) for name, vector in first.scores.items())
    assert first.widths_after == second.widths_after
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_one_scoring_serves_several_budgets() -> None:
    model = fusion_model(BASIC)
    whole = prune(model, batches(), RECIPE, loss_fn)
    again = prune_by_scores(model, whole.scores, RECIPE, batches()[0][0])
    assert again.to_json() == whole.to_json()
    less = prune_by_scores(model, whole.scores, dataclasses.replace(RECIPE, amount=0.2), batches()[0][0])
    assert less.got == pytest.approx(0.2, abs=0.01)
    none = prune_by_scores(model, whole.scores, dataclasses.replace(RECIPE, amount=0.0), batches()[0][0])
    assert none.widths_after == none.widths_before
    with pytest.raises(PruningError, match="scores of channel group"):
        prune_by_scores(model, {}, RECIPE, batches()[0][0])


def test_kept_weights_are_those_of_the_dense_model() -> None:
    model = fusion_model(BASIC)
    result = prune(model, batches(), RECIPE, loss_fn)
    again = shrink(model, result.groups, result.keep)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in result.model.state_dict().items())
    stem = result.keep["img_backbone.conv1"]
    assert torch.equal(result.model.img_backbone.bn1.weight, model.img_backbone.bn1.weight[stem])


@pytest.mark.parametrize("scope", [("camera",), ("lidar",), ("camera", "lidar")])
def test_only_the_scope_is_pruned(scope: tuple[Partition, ...]) -> None:
    recipe = dataclasses.replace(RECIPE, scope=scope, budget="channels", amount=0.3)
    result = prune(fusion_model(BASIC), batches(), recipe, loss_fn)
    changed = {g.partition for g in result.groups if result.widths_after[g.name] != g.width}
    assert changed == set(scope)
    assert result.got == pytest.approx(0.3, abs=0.03)


def test_nothing_removed_at_zero() -> None:
    def never(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        raise AssertionError("nothing needs a score")

    result = prune(fusion_model(BASIC), batches(), dataclasses.replace(RECIPE, amount=0.0), never)
    assert result.widths_after == result.widths_before
    assert result.got == 0.0


def test_partitions_sum_to_zero() -> None:
    model = fusion_model(BASIC)
    result = prune(model, batches(), RECIPE, loss_fn)
    for partition in ("camera", "lidar", "fusion"):
        scores = torch.cat([result.scores[g.name] for g in result.groups if g.partition == partition])
        assert abs(float(scores.sum())) < 1e-9
        assert 0 < int((scores < 0).sum()) < len(scores)
    again = score(model, result.groups, batches(), RECIPE, loss_fn)
    assert all(torch.equal(vector, again[name]) for name, vector in result.scores.items())


def test_an_impossible_budget_fails_before_scoring() -> None:
    def never(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        raise AssertionError("scored although the budget is out of reach")

    recipe = dataclasses.replace(RECIPE, amount=0.99)
    with pytest.raises(PruningError, match=r"99\.0% less cannot be met"):
        prune(fusion_model(BASIC), batches(), recipe, never)


def test_too_few_batches() -> None:
    recipe = dataclasses.replace(RECIPE, reactivation_batches=5)
    assert batches_needed(recipe) == 5
    with pytest.raises(PruningError, match="2 batches"):
        prune(fusion_model(BASIC), batches(), recipe, loss_fn)


def test_a_partition_nobody_declared() -> None:
    model = fusion_model(BASIC)
    model.partition_of = lambda name: "radar" if name.startswith("pts_middle") else FusionModel.partition_of(name)  # type: ignore[assignment,method-assign]
    with pytest.raises(PruningError, match="radar"):
        prune(model, batches(), RECIPE, loss_fn)


def test_frames_go_to_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the model is: there is no other device here than the one that a copy of its frames is asked for."""
    asked, moved = [], FrameBatch.to
    monkeypatch.setattr(FrameBatch, "to", lambda self, device: (asked.append(device), moved(self, device))[1])
    model = fusion_model(BASIC)
    count_flops(model, batches()[0][0])
    bind(model, loss_fn)(batches()[0], "none")
    assert asked == [torch.device("cpu")] * 2
