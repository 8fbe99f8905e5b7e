"""DeCI, ReRI and AlterEva against the literal equations, finite differences and hand-made errors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from branch_toys import (
    TOY_GROUPS,
    channel_entries,
    naive_deci,
    naive_reri,
    naive_scores,
    toy_batches,
    toy_loss,
    toy_model,
)
from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.pruning.altereva import AlterEvaOptions, Indicators, altereva, measure
from altermoma.pruning.channels import Aggregation, ChannelVectors
from altermoma.pruning.indicators import ChannelTerms, ScoringData, deci, reri
from altermoma.pruning.masking import bind, preserved

LR = 0.05


def assert_same(found: ChannelVectors, expected: dict[str, list[float]]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values, dtype=torch.float64), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("aggregation", ["channel", "element"])
def test_deci_equals_the_equation(aggregation: Aggregation) -> None:
    model, batches = toy_model(), toy_batches(3)
    found = deci(model, bind(model, toy_loss), batches, ChannelTerms(model, TOY_GROUPS, aggregation), norms="running")
    assert_same(found, naive_deci(model, batches, aggregation))


@pytest.mark.parametrize("aggregation", ["channel", "element"])
@pytest.mark.parametrize("masked", ["camera", "lidar"])
@pytest.mark.parametrize("last", [1, 3])
def test_reri_equals_the_equation(aggregation: Aggregation, masked: Literal["camera", "lidar"], last: int) -> None:
    model, batches = toy_model(), toy_batches(4)
    data = ScoringData(reactivation=batches, terms=batches[-last:], norms="running")
    found = reri(model, bind(model, toy_loss), data, ChannelTerms(model, TOY_GROUPS, aggregation), masked, LR)
    expected = naive_reri(model, batches, last, masked, aggregation, LR)
    assert_same(found, expected)
    others = "lid1" if masked == "lidar" else "cam1"
    assert not any(expected[others]), "a masked branch has no redundancy term"
    assert any(expected["fuse"])


def test_the_first_step_serves_as_a_term() -> None:
    """The gradient of the first reactivation step is that of its batch at the initial parameters, to the bit."""
    model, batches = toy_model(), toy_batches(4)
    terms, loss = ChannelTerms(model, TOY_GROUPS, "channel"), bind(model, toy_loss)
    data = ScoringData(reactivation=batches, terms=batches[:2], norms="running")
    apart = reri(model, loss, data, terms, "lidar", LR)
    together = reri(model, loss, dataclasses.replace(data, starts_together=True), terms, "lidar", LR)
    assert any(bool(vector.any()) for vector in apart.values())
    assert all(torch.equal(vector, together[name]) for name, vector in apart.items())


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.0, 0.5), (1.0, 0.0), (0.0, 2.0)])
def test_scores_equal_the_equations(alpha: float, beta: float) -> None:
    model, batches = toy_model(), toy_batches(4)
    options = AlterEvaOptions(alpha=alpha, beta=beta, lr=LR)
    data = ScoringData(reactivation=batches[:3], terms=batches[1:3], norms="running")
    indicators = measure(model, TOY_GROUPS, toy_loss, batches, data, options)
    found = altereva(TOY_GROUPS, indicators, AlterEvaOptions(alpha=alpha, beta=beta))
    redundancy = {m: naive_reri(model, batches[:3], 2, m, "channel", LR) for m in ("lidar", "camera")}
    assert_same(found, naive_scores(naive_deci(model, batches, "channel"), redundancy, alpha, beta))
    for partition in ("camera", "lidar", "fusion"):
        total = sum(float(found[g.name].sum()) for g in TOY_GROUPS if g.partition == partition)
        assert total == pytest.approx(alpha - beta, abs=1e-12)


def test_deci_is_the_slope_of_the_loss_when_a_channel_fades() -> None:
    model, (batch,) = toy_model().eval(), toy_batches(1)
    found = deci(model, bind(model, toy_loss), [batch], ChannelTerms(model, TOY_GROUPS, "channel"), norms="running")
    step = 1e-5
    for group in TOY_GROUPS:
        for channel in range(group.width):
            losses = [loss_of(faded(model, group, channel, factor), batch) for factor in (1 + step, 1 - step)]
            slope = abs(losses[0] - losses[1]) / (2 * step)
            assert float(found[group.name][channel]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_deci_is_the_loss_change_of_removing_a_small_channel() -> None:
    small = 1e-4
    (batch,) = toy_batches(1)
    group = TOY_GROUPS[1]
    model = toy_model().eval()
    with torch.no_grad():  # makers small, reader as it is: the loss is linear in such a channel
        model.cam2.weight[1] *= small
        model.cam2.bias[1] *= small
    terms = ChannelTerms(model, [dataclasses.replace(group, members=group.members[:-1])], "channel")
    found = deci(model, bind(model, toy_loss), [batch], terms, norms="running")
    removed = copy.deepcopy(model)
    with torch.no_grad():
        removed.cam2.weight[1] = 0
        removed.cam2.bias[1] = 0
    change = loss_of(removed, batch) - loss_of(model, batch)
    assert float(found["cam2"][1]) == pytest.approx(abs(change), rel=1e-2)


def loss_of(model: nn.Module, batch: Any) -> float:
    with torch.no_grad():
        return float(toy_loss(model, *batch, "none"))


def faded(model: nn.Module, group: Any, channel: int, factor: float) -> nn.Module:
    """A copy with every parameter of one channel scaled."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in channel_entries(group, channel, parameters).items():
            parameters[name][mask] *= factor
    return model


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[bool]]:
    return {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]


def assert_unchanged(model: nn.Module, before: tuple[dict[str, Tensor], list[bool]]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[0][name]), name
    assert [m.training for m in model.modules()] == before[1]


def test_the_model_comes_back_bit_for_bit() -> None:
    model, batches = toy_model(), toy_batches(3)
    model.lid_bn.eval()
    before = snapshot(model)
    data = ScoringData(reactivation=batches, terms=batches[:2], norms="running")
    first, second = (measure(model, TOY_GROUPS, toy_loss, batches, data, AlterEvaOptions(lr=LR)) for _ in range(2))
    assert_unchanged(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(first.reri["lidar"][name], second.reri["lidar"][name]) for name in first.deci)


def test_the_model_comes_back_even_from_train_mode_damage() -> None:
    model, (batch,) = toy_model(), toy_batches(1)
    before = snapshot(model)

    def damage() -> None:
        model.train()
        model(batch[0])
        with torch.no_grad():
            model.fuse.weight.zero_()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), preserved(model):
        damage()
    assert_unchanged(model, before)


def test_gradients_are_summed_in_a_fixed_order() -> None:
    model, (batch,) = toy_model(), toy_batches(1)
    seen = []

    def loss(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return toy_loss(model, batch, truths, masked)

    deci(model, bind(model, loss), [batch], ChannelTerms(model, TOY_GROUPS, "channel"), norms="running")
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_cost_in_passes() -> None:
    model, batches = toy_model(), toy_batches(5)
    masks: list[str] = []

    def counted(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        masks.append(masked)
        return toy_loss(model, batch, truths, masked)

    data = ScoringData(reactivation=batches, terms=batches[-1:], norms="running")
    measure(model, TOY_GROUPS, counted, batches[:2], data, AlterEvaOptions(lr=LR))
    assert masks == ["none"] * 2 + ["lidar"] * 7 + ["camera"] * 7, "eq. 7-10 literally: B + 2 passes per mask"


def not_finite_later(calls: int) -> Callable[..., Tensor]:
    seen = []

    def loss(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        seen.append(masked)
        return toy_loss(model, batch, truths, masked) * (float("nan") if len(seen) > calls else 1.0)

    return loss


@pytest.mark.parametrize("calls", [0, 3, 8])
def test_a_loss_that_is_not_finite_stops_and_restores(calls: int) -> None:
    model, batches = toy_model(), toy_batches(2)
    before = snapshot(model)
    data = ScoringData(reactivation=batches, terms=batches, norms="running")
    with pytest.raises(PruningError, match="task loss is nan"):
        measure(model, TOY_GROUPS, not_finite_later(calls), batches, data, AlterEvaOptions(lr=LR))
    assert_unchanged(model, before)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    model, batches = toy_model(), toy_batches(1)

    def loss(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        return torch.sqrt(toy_loss(model, batch, truths, masked) * 0)

    with pytest.raises(PruningError, match="gradient"):
        deci(model, bind(model, loss), batches, ChannelTerms(model, TOY_GROUPS, "channel"), norms="running")


def test_zero_gradients_everywhere_are_an_error() -> None:
    model, batches = toy_model(), toy_batches(1)
    data = ScoringData(reactivation=batches, terms=batches, norms="running")

    def flat(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        return toy_loss(model, batch, truths, masked) * 0.0

    indicators = measure(model, TOY_GROUPS, flat, batches, data, AlterEvaOptions(lr=LR))
    with pytest.raises(PruningError, match=r"DeCI is 0\.0 over the whole camera partition"):
        altereva(TOY_GROUPS, indicators, AlterEvaOptions())


def test_a_reactivation_that_changes_nothing_is_an_error() -> None:
    model, batches = toy_model(), toy_batches(1)
    data = ScoringData(reactivation=batches, terms=batches, norms="running")
    indicators = measure(model, TOY_GROUPS, toy_loss, batches, data, AlterEvaOptions(lr=0.0))
    with pytest.raises(PruningError, match="reactivation_lr"):
        altereva(TOY_GROUPS, indicators, AlterEvaOptions())


def test_an_undeclared_partition_is_an_error() -> None:
    odd = [dataclasses.replace(TOY_GROUPS[0], partition="radar")]  # type: ignore[arg-type]
    zeros = {"cam1": torch.ones(4)}
    with pytest.raises(PruningError, match="radar"):
        altereva(odd, Indicators(deci=zeros, reri={"lidar": zeros}), AlterEvaOptions())


def test_frozen_channels_are_an_error() -> None:
    model = toy_model().requires_grad_(False)
    with pytest.raises(PruningError, match="frozen"):
        ChannelTerms(model, TOY_GROUPS, "channel")


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_redundancy_as_a_factor(beta: float) -> None:
    """D / (1 + R / D) with shares of the partition, one channel at a time; for small R it is the paper's D - R."""
    model, batches = toy_model(), toy_batches(3)
    data = ScoringData(reactivation=batches, terms=batches[:1], norms="running")
    found = measure(model, TOY_GROUPS, toy_loss, batches, data, AlterEvaOptions(lr=LR))
    scores = altereva(TOY_GROUPS, found, AlterEvaOptions(beta=beta, redundancy="factor"))
    masks = {"camera": ["lidar"], "lidar": ["camera"], "fusion": ["lidar", "camera"]}
    for group in TOY_GROUPS:
        mine = [other.name for other in TOY_GROUPS if other.partition == group.partition]
        for channel in range(group.width):
            contribution = float(found.deci[group.name][channel] / sum(found.deci[name].sum() for name in mine))
            redundancy = 0.0
            for masked in masks[group.partition]:
                reri_of = found.reri[masked]  # type: ignore[index]
                share = float(reri_of[group.name][channel]) / sum(float(reri_of[name].sum()) for name in mine)
                redundancy += beta * share / len(masks[group.partition])
            expected = contribution / (1 + redundancy / contribution) if contribution else 0.0
            assert float(scores[group.name][channel]) == pytest.approx(expected, rel=1e-9)
    small = 1e-6
    first_order = altereva(TOY_GROUPS, found, AlterEvaOptions(beta=small))
    for name, vector in altereva(TOY_GROUPS, found, AlterEvaOptions(beta=small, redundancy="factor")).items():
        torch.testing.assert_close(vector, first_order[name].clamp(min=0.0), rtol=1e-4, atol=1e-7)


def test_in_the_unit_of_loss_contributions_alone_are_deci() -> None:
    """Without redundancy the scores are DeCI itself; with it, each partition's order is as in shares."""
    model, batches = toy_model(), toy_batches(3)
    data = ScoringData(reactivation=batches, terms=batches[:1], norms="running")
    found = measure(model, TOY_GROUPS, toy_loss, batches, data, AlterEvaOptions(lr=LR))
    alone = altereva(TOY_GROUPS, found, AlterEvaOptions(beta=0.0, unit="loss"))
    for name, vector in found.deci.items():
        torch.testing.assert_close(alone[name], vector, rtol=1e-9, atol=0.0)
    shares, losses = (altereva(TOY_GROUPS, found, AlterEvaOptions(unit=unit)) for unit in ("share", "loss"))
    for group in TOY_GROUPS:
        mine = sum(float(found.deci[g.name].sum()) for g in TOY_GROUPS if g.partition == group.partition)
        torch.testing.assert_close(losses[group.name], mine * shares[group.name], rtol=1e-9, atol=1e-15)


def test_a_factor_needs_a_contribution() -> None:
    with pytest.raises(PruningError, match="alpha = 0"):
        altereva(TOY_GROUPS, Indicators(deci={}, reri={}), AlterEvaOptions(alpha=0.0, redundancy="factor"))
