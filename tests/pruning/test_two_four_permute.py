"""Channel orders: the search against exhaustive search, greedy and chance; reordered models against their originals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fusion_toys import BASIC, BOTTLENECK, SWIN, frame_batch, fusion_model, outputs_of, scaled_down
from torch import Tensor

from altermoma.checkpoints.io import bundled_checkpoint, model_from_checkpoint
from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import PRESETS
from altermoma.pruning.channels import ChannelGroup, Slice
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.surgery import shrink
from altermoma.pruning.two_four import kept_magnitude, two_four_masks, weights_of
from altermoma.pruning.two_four_permute import (
    find_orders,
    folded_sizes,
    moved,
    permuted,
    permuted_entries,
    permuted_state,
)
from altermoma.pruning.two_four_search import kept_sum, partings, search

CONFIGS = {
    "basic": BASIC,
    "bottleneck": BOTTLENECK,
    "swin": SWIN,
    **{name: scaled_down(config) for name, config in PRESETS.items()},
}
QUICK = {"basic", "bottleneck", "swin", "bevfusion-tiny-pillars"}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def magnitudes(entries: int, rows: int, seed: int) -> np.ndarray:
    """Columns of unlike sizes, as channels are."""
    rng = np.random.default_rng(seed)
    normal = np.abs(rng.standard_normal((entries, rows)))
    return (normal * rng.gamma(1.0, 1.0, (entries, 1))).astype(np.float32)


def share(columns_cr: np.ndarray, entries: Sequence[int]) -> float:
    """What 2:4 keeps of the columns in this order, by sorting."""
    fours = np.sort(columns_cr[list(entries)].astype(np.float64).reshape(-1, 4, columns_cr.shape[1]), axis=1)
    return float(fours[:, 2:].sum() / columns_cr.sum(dtype=np.float64))


def exhaustive(columns_cr: np.ndarray, unit: int) -> float:
    """The best share over every way to part all channels into fours."""
    size = 4 // unit

    @cache
    def worth(group: tuple[int, ...]) -> float:
        rows = [channel * unit + entry for channel in group for entry in range(unit)]
        return float(np.sort(columns_cr[rows].astype(np.float64), axis=0)[2:].sum())

    def best(rest: tuple[int, ...]) -> float:
        if not rest:
            return 0.0
        groups = ((rest[0], *others) for others in combinations(rest[1:], size - 1))
        return max(worth(group) + best(tuple(c for c in rest if c not in group)) for group in groups)

    return best(tuple(range(len(columns_cr) // unit))) / float(columns_cr.sum(dtype=np.float64))


def greedy(columns_cr: np.ndarray) -> float:
    """Takes the largest column left, and the three that keep most beside it; again until none is left."""
    rest = sorted(range(len(columns_cr)), key=lambda c: -float(columns_cr[c].sum()))
    order: list[int] = []

    def worth(group: tuple[int, ...]) -> float:
        """Kept less lost."""
        sizes = np.sort(columns_cr[list(group)], axis=0)
        return float(sizes[2:].sum() - sizes[:2].sum())

    while rest:
        group = max(((rest[0], *others) for others in combinations(rest[1:], 3)), key=worth)
        order += group
        rest = [c for c in rest if c not in group]
    return share(columns_cr, order)


@pytest.mark.parametrize(("entries", "rows", "unit"), [(8, 16, 1), (12, 16, 1), (12, 64, 1), (8, 9, 2), (16, 24, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_as_good_as_exhaustive(entries: int, rows: int, unit: int, seed: int) -> None:
    columns = magnitudes(entries, rows, seed)
    found = search(columns, unit=unit)
    order = (found.order[:, None] * unit + np.arange(unit)).reshape(-1)
    assert sorted(found.order) == list(range(entries // unit))
    assert found.after == pytest.approx(share(columns, order), abs=1e-6)
    assert found.before == pytest.approx(share(columns, range(entries)), abs=1e-6)
    assert found.after == pytest.approx(exhaustive(columns, unit), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_better_than_greedy_and_chance(seed: int) -> None:
    columns = magnitudes(32, 48, seed)
    found = search(columns)
    assert found.after > greedy(columns)
    rng = np.random.default_rng(seed)
    assert found.after > max(share(columns, rng.permutation(32)) for _ in range(200))


def test_partings_are_all_and_distinct() -> None:
    for unit, count in ((1, 35), (2, 3)):
        ways = partings(unit)
        assert len({frozenset(way[:4].tolist()) for way in ways}) == len(ways) == count
        assert (np.sort(ways, axis=1) == np.arange(8)).all()


def test_work_is_bounded_and_repeatable() -> None:
    columns = magnitudes(64, 700, 0)
    whole, little = search(columns), search(columns, work=3_000_000)
    assert little.work <= 3_000_000 + 16 * 15 * 35 * 128
    assert little.before < little.after <= whole.after
    assert (search(columns).order == whole.order).all()


def test_never_worse_than_before() -> None:
    best = search(magnitudes(16, 8, 3)).order
    again = search(magnitudes(16, 8, 3)[best])
    assert again.after >= again.before
    assert (search(np.zeros((8, 3), np.float32)).order == np.arange(8)).all()
    assert (search(magnitudes(4, 5, 0)).order == np.arange(4)).all()
    with pytest.raises(PruningError, match="6 entries of 1 per channel"):
        search(magnitudes(6, 5, 0))


def test_kept_sum_against_sorting() -> None:
    columns = magnitudes(24, 1500, 5)
    order = np.random.default_rng(0).permutation(24)
    whole = float(columns.sum(dtype=np.float64))
    assert kept_sum(columns, order) / whole == pytest.approx(share(columns, order), abs=1e-6)


def random_orders(groups: Sequence[ChannelGroup], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.width, generator=generator) for group in groups}


def in_float64(model: FusionModel, batch: FrameBatch) -> tuple[FusionModel, FrameBatch]:
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in batch.tensors.items()}
    return model.double(), FrameBatch(tensors=tensors, size=batch.size)


@pytest.mark.parametrize("name", NAMES)
def test_a_reordered_model_computes_the_same(name: str) -> None:
    """Every group at random: residual partners, concatenations, height cells, heads, pillars."""
    config = CONFIGS[name]
    model, batch = in_float64(fusion_model(config), frame_batch(config.geometry))
    groups = fusion_groups(model)
    other = permuted(model, groups, random_orders(groups, 1))
    changed = [key for key, tensor in other.state_dict().items() if not torch.equal(tensor, model.state_dict()[key])]
    assert len(changed) > 0.5 * len(groups)
    found, wanted = outputs_of(other, batch), outputs_of(model, batch)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=1e-9)


def test_a_pruned_model_too() -> None:
    model, batch = in_float64(fusion_model(BOTTLENECK), frame_batch(BOTTLENECK.geometry))
    groups = fusion_groups(model)
    keep = {group.name: torch.arange(0, group.width, 2) for group in groups}
    small = shrink(model, groups, keep)
    groups = fusion_groups(small)
    other = permuted(small, groups, random_orders(groups, 2))
    found, wanted = outputs_of(other, batch), outputs_of(small, batch)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=1e-9)


def test_one_group_alone_keeps_its_members_together() -> None:
    """What a wrong table would do: an order that only some members follow changes the model."""
    model, batch = in_float64(fusion_model(BASIC), frame_batch(BASIC.geometry))
    groups = fusion_groups(model)
    group = next(g for g in groups if g.name == "pts_middle_encoder.conv_out.0")
    assert any(member.repeat > 1 for member in group.members)
    orders = {group.name: torch.arange(group.width).flip(0)}
    whole = permuted_state(model.state_dict(), groups, orders)
    model.load_state_dict({**whole, "fusion_layer.0.weight": model.state_dict()["fusion_layer.0.weight"]})
    fresh = fusion_model(BASIC).double()
    assert (outputs_of(model, batch)["dense_heatmap"] - outputs_of(fresh, batch)["dense_heatmap"]).abs().max() > 1e-3


def test_orders_keep_more_of_the_shipped_model() -> None:
    model = model_from_checkpoint(bundled_checkpoint("bevfusion-tiny"))
    groups = fusion_groups(model)
    dims = {weight.name: weight.dim for weight in weights_of(model, "aligned") if not weight.obstacle}
    orders, gains = find_orders(model, groups, dims, work=50_000_000)
    other = permuted(model, groups, orders)
    before = kept_magnitude(model, two_four_masks(model, "aligned"))
    after = kept_magnitude(other, two_four_masks(other, "aligned"))
    assert after > before + 0.005
    assert {gain.group for gain in gains} == set(orders) >= set(moved(orders))
    assert all(gain.after >= gain.before for gain in gains)


def test_weights_count_as_they_are_exported() -> None:
    """Against the norm's own answer to a unit step: scale times weight."""
    model = fusion_model(BOTTLENECK).double()
    names = [weight.name for weight in weights_of(model, "pattern") if not weight.obstacle]
    sizes = folded_sizes(model, fusion_groups(model), names)
    for layer, norm in (
        ("img_backbone.layer2.0.conv3", "img_backbone.layer2.0.bn3"),
        ("pts_middle_encoder.conv_out.0", "pts_middle_encoder.conv_out.1"),
        ("bbox_head.prediction_heads.0.dim.0.conv", "bbox_head.prediction_heads.0.dim.0.bn"),
    ):
        weight, part = model.get_parameter(f"{layer}.weight"), model.get_submodule(norm)

        def answers(rows: Tensor, norm: Any = part) -> Tensor:
            return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

        step = torch.eye(weight.shape[0], dtype=torch.float64)
        answer = (answers(step) - answers(torch.zeros_like(step))).abs().sum(dim=1)
        wanted = weight.detach().abs() * answer.reshape(-1, *[1] * (weight.ndim - 1))
        torch.testing.assert_close(sizes[f"{layer}.weight"], wanted)
    plain = "bbox_head.decoder.0.ffn.layers.1.weight"
    torch.testing.assert_close(sizes[plain], model.get_parameter(plain).detach().abs())


def test_entries_of_two_groups_in_one_dimension() -> None:
    groups = list(_toy_groups())
    orders = {"b": torch.tensor([2, 0, 1])}
    assert permuted_entries(groups, orders, "reader", 1, 9).tolist() == [0, 1, 2, 7, 8, 3, 4, 5, 6]
    state = {"a": torch.zeros(2, 1), "b": torch.arange(3.0)[:, None], "reader": torch.arange(9.0)[None]}
    found = permuted_state(state, groups, orders)
    assert found["b"][:, 0].tolist() == [2, 0, 1]
    assert found["reader"][0].tolist() == [0, 1, 2, 7, 8, 3, 4, 5, 6]
    for wrong in ({"c": torch.arange(2)}, {"b": torch.tensor([0, 1, 1])}, {"b": torch.arange(2)}):
        with pytest.raises(PruningError, match=r"unknown channel group c|the order of b is"):
            permuted_state(state, groups, wrong)


def _toy_groups() -> Iterator[ChannelGroup]:
    """One entry of its own, then two channels, then three of two entries each."""
    for name, width, offset, repeat in (("a", 2, 1, 1), ("b", 3, 3, 2)):
        made = Slice(tensor=name, dim=0, produces=True)
        read = Slice(tensor="reader", dim=1, offset=offset, repeat=repeat, produces=False)
        yield ChannelGroup(name=name, partition="camera", width=width, members=(made, read))
