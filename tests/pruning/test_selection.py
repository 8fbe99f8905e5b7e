"""The global ranking against brute force, budgets against granularity, and budgets out of reach."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelGroup, ChannelVectors, Slice
from altermoma.pruning.costs import CostModel, channel_costs
from altermoma.pruning.selection import Method, SelectionOptions, allowed_widths, best_channels, check_budget, select


def chain(*widths: int) -> tuple[tuple[ChannelGroup, ...], CostModel]:
    """A chain of 1x1 convolutions 3 -> widths... -> 2 with one FLOP per weight."""
    shapes, groups = {}, []
    for index, (reads, makes) in enumerate(pairwise((3, *widths, 2))):
        shapes[f"conv{index}"] = (makes, reads)
        if index < len(widths):
            members = (
                Slice(tensor=f"conv{index}", dim=0, produces=True),
                Slice(tensor=f"conv{index + 1}", dim=1, produces=False),
            )
            groups.append(ChannelGroup(name=f"g{index}", partition="camera", width=makes, members=members))
    return tuple(groups), CostModel(shapes, dict.fromkeys(shapes, 1.0), groups)


def random_scores(groups: tuple[ChannelGroup, ...], seed: int) -> ChannelVectors:
    """Scores as AlterEva's: they sum to zero, about half are negative, groups differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        g.name: torch.randn(g.width, generator=generator, dtype=torch.float64) * (i + 1) for i, g in enumerate(groups)
    }
    mean = torch.cat(list(found.values())).mean()
    return {name: vector - mean for name, vector in found.items()}


@pytest.mark.parametrize("amount", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_without_rounding_the_lowest_of_all_go(amount: float, seed: int) -> None:
    groups, _ = chain(20, 7, 33)
    scores = random_scores(groups, seed)
    found = select(groups, scores, channel_costs(groups), SelectionOptions(amount=amount, step=1, floor=1))
    everything = sorted((float(s), g.name, c) for g in groups for c, s in enumerate(scores[g.name]))
    count = round(amount * 60)
    expected = {(name, channel) for _, name, channel in everything[count:]}
    assert {(name, int(c)) for name, index in found.keep.items() for c in index} == expected
    assert found.got == pytest.approx(count / 60)


def test_the_ranking_is_by_order_not_by_value() -> None:
    groups, cost = chain(16, 16)
    scores = random_scores(groups, 3)
    options = SelectionOptions(amount=0.4, step=4, floor=4)
    shifted = {name: vector * 0.1 - 5.0 for name, vector in scores.items()}
    assert select(groups, scores, cost, options).widths == select(groups, shifted, cost, options).widths


@pytest.mark.parametrize("method", ["threshold", "greedy"])
def test_a_group_wholly_below_the_threshold_keeps_its_floor(method: Method) -> None:
    groups, cost = chain(16, 16, 16)
    scores = random_scores(groups, 0)
    scores["g1"] = scores["g1"] - 1000.0
    found = select(groups, scores, cost, SelectionOptions(amount=0.5, step=4, floor=8, method=method))
    assert found.widths["g1"] == 8
    assert found.got == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("method", ["threshold", "greedy"])
@pytest.mark.parametrize("amount", [0.0, 0.1, 0.3, 0.5, 0.6])
def test_budgets_are_met_within_granularity(method: Method, amount: float) -> None:
    groups, cost = chain(64, 64, 128, 128, 64)
    scores = random_scores(groups, 5)
    found = select(groups, scores, cost, SelectionOptions(amount=amount, step=16, floor=16, method=method))
    assert all(width % 16 == 0 for width in found.widths.values())
    assert found.got == pytest.approx(cost.removed_share(found.widths))
    assert found.got == pytest.approx(amount, abs=0.02)
    for name, index in found.keep.items():
        kept = set(index.tolist())
        assert len(kept) == found.widths[name]
        worst = min(float(scores[name][c]) for c in kept)
        gone = [float(s) for c, s in enumerate(scores[name]) if c not in kept]
        assert not gone or max(gone) <= worst, "the best channels of the group stay"


def test_greedy_first_removes_the_cheapest_loss_per_cost() -> None:
    groups, cost = chain(2, 2)
    scores = {"g0": torch.tensor([0.0, 5.0]).double(), "g1": torch.tensor([1.0, 5.0]).double()}
    one_block = {"g0": 1 - cost.total({"g0": 1}) / cost.dense, "g1": 1 - cost.total({"g1": 1}) / cost.dense}
    found = select(groups, scores, cost, SelectionOptions(amount=one_block["g0"], step=1, floor=1, method="greedy"))
    assert found.widths == {"g0": 1, "g1": 2}


def test_greedy_saves_the_most_price_for_the_lost_score() -> None:
    groups, cost = chain(4, 4, 4)
    scores = {group.name: torch.arange(4).double() for group in groups}
    shapes = {f"conv{index}": shape for index, shape in enumerate([(4, 3), (4, 4), (4, 4), (2, 4)])}
    options = SelectionOptions(amount=0.2, step=1, floor=1, method="greedy")
    for slow in ("g0", "g2"):
        # Only the layer that the slow group is computed by and reads from takes time.
        layers = {"g0": "conv0", "g2": "conv3"}
        price = CostModel(shapes, {layers[slow]: 1.0}, groups)
        found = select(groups, scores, cost, options, price)
        assert min(found.widths, key=lambda name: found.widths[name]) == slow
        assert found.got == pytest.approx(0.2, abs=0.06)
    with pytest.raises(PruningError, match="one threshold"):
        select(groups, scores, cost, replace(options, method="threshold"), price)


def test_the_nearest_threshold_is_found_by_trying_all() -> None:
    groups, cost = chain(24, 40, 8)
    scores = random_scores(groups, 9)
    options = SelectionOptions(amount=0.37, step=8, floor=8)
    found = select(groups, scores, cost, options)
    everything = torch.cat([scores[g.name] for g in groups]).sort().values
    errors = []
    for threshold in [*everything.tolist(), float("inf")]:
        left = {g.name: int((scores[g.name] >= threshold).sum()) for g in groups}
        widths = {
            g.name: min(allowed_widths(g.width, 8, 8), key=lambda w, n=left[g.name]: (abs(w - n), -w)) for g in groups
        }
        errors.append(abs(cost.removed_share(widths) - 0.37))
    assert abs(found.got - 0.37) <= min(errors) + 1e-12


@pytest.mark.parametrize("method", ["threshold", "greedy"])
def test_a_budget_out_of_reach_says_what_is_in_reach(method: Method) -> None:
    groups, cost = chain(32, 32)
    least = 1 - (3 * 16 + 16 * 16 + 16 * 2) / (3 * 32 + 32 * 32 + 32 * 2)
    options = SelectionOptions(amount=0.9, step=16, floor=16, method=method)
    with pytest.raises(PruningError, match=f"0 to {least:.1%}"):
        select(groups, random_scores(groups, 0), cost, options)
    reached = select(groups, random_scores(groups, 0), cost, SelectionOptions(amount=least, method=method))
    assert set(reached.widths.values()) == {16}


@pytest.mark.parametrize("amount", [1.0, -0.1])
def test_impossible_shares(amount: float) -> None:
    groups, cost = chain(32, 32)
    with pytest.raises(PruningError, match="cannot be met"):
        select(groups, random_scores(groups, 0), cost, SelectionOptions(amount=amount, step=1, floor=1))


def test_scores_that_are_not_finite_are_an_error() -> None:
    groups, cost = chain(4, 4)
    scores = random_scores(groups, 0)
    scores["g1"][2] = float("nan")
    with pytest.raises(PruningError, match="g1"):
        select(groups, scores, cost, SelectionOptions(amount=0.2, step=1, floor=1))


def test_ties_go_by_group_and_channel_number() -> None:
    groups, _ = chain(4, 4)
    equal = {g.name: torch.zeros(4, dtype=torch.float64) for g in groups}
    found = select(groups, equal, channel_costs(groups), SelectionOptions(amount=0.25, step=1, floor=1))
    assert {name: index.tolist() for name, index in found.keep.items()} == {"g0": [0, 1], "g1": [0, 1, 2, 3]}
    assert best_channels(torch.zeros(5), 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("width", "step", "floor", "expected"),
    [
        (64, 16, 16, (16, 32, 48, 64)),
        (24, 16, 16, (16, 24)),
        (8, 16, 16, (8,)),
        (32, 16, 20, (32,)),
        (5, 1, 3, (3, 4, 5)),
    ],
)
def test_allowed_widths(width: int, step: int, floor: int, expected: tuple[int, ...]) -> None:
    assert allowed_widths(width, step, floor) == expected


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    step=st.sampled_from([1, 3, 8]),
    amount=st.floats(0, 0.95),
    seed=st.integers(0, 99),
    method=st.sampled_from(["threshold", "greedy"]),
)
def test_any_budget_is_met_or_refused(widths: list[int], step: int, amount: float, seed: int, method: Method) -> None:
    groups, cost = chain(*widths)
    scores = random_scores(groups, seed)
    options = SelectionOptions(amount=amount, step=step, floor=1, method=method)
    choices = {g.name: allowed_widths(g.width, step, 1) for g in groups}
    reach = cost.removed_share({name: allowed[0] for name, allowed in choices.items()})
    if amount > reach + 1e-9:
        with pytest.raises(PruningError):
            select(groups, scores, cost, options)
        return
    found = select(groups, scores, cost, options)
    assert all(found.widths[name] in allowed for name, allowed in choices.items())
    # One group at most can be a step off: what its largest step is worth bounds the error.
    blocks = [
        cost.removed_share({g.name: narrow}) - cost.removed_share({g.name: wide})
        for g in groups
        for narrow, wide in pairwise(choices[g.name])
    ]
    assert abs(found.got - amount) <= max(blocks, default=0.0) + 1e-9


def test_the_lidar_partition_has_its_own_step() -> None:
    (dense, second), _ = chain(32, 32)
    groups = (dense, replace(second, partition="lidar"))
    options = SelectionOptions(amount=0.5, step=16, lidar_step=8, floor=8)
    choices = check_budget(groups, channel_costs(groups), options)
    assert choices == {"g0": (16, 32), "g1": (8, 16, 24, 32)}
