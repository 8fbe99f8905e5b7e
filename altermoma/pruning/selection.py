"""Which channels stay: one global ranking, widths rounded to the target's step, a budget met as nearly as can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelGroup, ChannelVectors
from altermoma.pruning.costs import CostModel

Method = Literal["threshold", "greedy"]

Choices = Mapping[str, tuple[int, ...]]
"""Group name -> widths it may have, rising."""


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Attributes:
    amount: share of the cost to remove, at least 0 and below 1.
    step: widths are multiples of this, or the dense width.
    lidar_step: the same for groups of the LiDAR partition; `step` where left out.
    floor: least channels of a group.
    method: "threshold" is the paper's single threshold, then rounding; "greedy" removes blocks by score per cost.
    """

    amount: float
    step: int = 16
    lidar_step: int | None = None
    floor: int = 16
    method: Method = "threshold"

    def step_of(self, group: ChannelGroup) -> int:
        """The step of a group's widths."""
        return self.step if group.partition != "lidar" or self.lidar_step is None else self.lidar_step


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Attributes:
    keep: rising channel indices of each group in scope.
    widths: channels kept of each group in scope.
    asked, got: share of the cost asked for and removed.
    """

    keep: Mapping[str, Tensor]
    widths: Mapping[str, int]
    asked: float
    got: float


def allowed_widths(width: int, step: int, floor: int) -> tuple[int, ...]:
    """Rising: the multiples of `step` from `floor` on below the dense width, and the dense width itself."""
    first = -(-max(floor, 1) // step) * step
    return (*range(first, width, step), width)


def select(
    groups: Sequence[ChannelGroup],
    scores: ChannelVectors,
    cost: CostModel,
    options: SelectionOptions,
    price: CostModel | None = None,
) -> Selection:
    """Chooses the channels with the highest scores within the budget.

    Only the order of scores counts: about half are negative. Every group takes part, none is skipped; ties go by
    group order and channel number.

    Args:
        groups: groups in scope.
        scores: importance of their channels.
        cost: what the budget counts.
        options: budget and granularity.
        price: what the greedy search saves per lost score, time for one; the budget's cost where left out.

    Raises:
        PruningError: scores that are not finite, a budget out of reach (the message says what is in reach), or a
            price for the threshold, which has no use for it.
    """
    _check_scores(groups, scores)
    choices = check_budget(groups, cost, options)
    if options.method == "greedy":
        widths = _by_greed(groups, scores, cost, options.amount, choices, price or cost)
    elif price is None:
        widths = _by_threshold(groups, scores, cost, options.amount, choices)
    else:
        raise PruningError("a price of channels with one threshold for all", expected='prune.selection = "greedy"')
    keep = {group.name: best_channels(scores[group.name], widths[group.name]) for group in groups}
    return Selection(keep=keep, widths=widths, asked=options.amount, got=cost.removed_share(widths))


def keep_all(groups: Sequence[ChannelGroup]) -> Selection:
    """The selection that removes nothing."""
    keep = {group.name: torch.arange(group.width) for group in groups}
    return Selection(keep=keep, widths={group.name: group.width for group in groups}, asked=0.0, got=0.0)


def check_budget(groups: Sequence[ChannelGroup], cost: CostModel, options: SelectionOptions) -> Choices:
    """The allowed widths of each group; a budget beyond what they can reach is a PruningError."""
    choices = {group.name: allowed_widths(group.width, options.step_of(group), options.floor) for group in groups}
    reach = cost.removed_share({name: widths[0] for name, widths in choices.items()})
    if not 0.0 <= options.amount < 1.0 or options.amount > reach + 1e-9:
        raise PruningError(
            f"a budget of {options.amount:.1%} less cannot be met",
            expected=f"0 to {reach:.1%} (widths in steps of {options.step}, {options.floor} or more per group)",
            remedy="lower prune.amount, prune.channel_step or prune.min_channels, or widen prune.scope",
        )
    return choices


def best_channels(scores: Tensor, count: int) -> Tensor:
    """The `count` channels with the highest scores, lower numbers first among equals; rising int64."""
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values


def _check_scores(groups: Sequence[ChannelGroup], scores: ChannelVectors) -> None:
    for group in groups:
        found = scores.get(group.name)
        if found is None or tuple(found.shape) != (group.width,) or not bool(torch.isfinite(found).all()):
            raise PruningError(
                f"scores of channel group {group.name}: {'none' if found is None else found.tolist()}",
                expected=f"{group.width} finite numbers",
            )


def _by_threshold(
    groups: Sequence[ChannelGroup], scores: ChannelVectors, cost: CostModel, amount: float, choices: Choices
) -> dict[str, int]:
    """One global threshold, found by bisection over ranks; then roundings that were nearly ties are turned."""
    owner = np.repeat(np.arange(len(groups)), [group.width for group in groups])
    everything = torch.cat([scores[group.name] for group in groups]).numpy()
    ranked = owner[np.argsort(everything, kind="stable")]

    def left(removed: int) -> dict[str, int]:
        gone = np.bincount(ranked[:removed], minlength=len(groups))
        return {group.name: group.width - int(n) for group, n in zip(groups, gone, strict=True)}

    def rounded(removed: int) -> dict[str, int]:
        return {name: _nearest(count, choices[name]) for name, count in left(removed).items()}

    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if cost.removed_share(rounded(middle)) < amount:
            low = middle + 1
        else:
            high = middle
    errors = {n: abs(cost.removed_share(rounded(n)) - amount) for n in (max(low - 1, 0), low)}
    removed = min(errors, key=lambda n: (errors[n], n))
    return _turn_ties(left(removed), rounded(removed), cost, amount, choices)


def _nearest(count: int, allowed: tuple[int, ...]) -> int:
    """The allowed width nearest to `count`, the wider of two equally near."""
    return min(allowed, key=lambda width: (abs(width - count), -width))


def _turn_ties(
    exact: Mapping[str, int], widths: dict[str, int], cost: CostModel, amount: float, choices: Choices
) -> dict[str, int]:
    """Rounds groups the other way, those nearest to a tie first, where that brings the cost nearer to the budget."""
    others: list[tuple[int, str, int]] = []
    for name, width in widths.items():
        beyond = [w for w in choices[name] if (w - width) * (exact[name] - width) > 0]
        if beyond:
            other = min(beyond, key=lambda w: abs(w - width))
            others.append((abs(other - exact[name]) - abs(width - exact[name]), name, other))
    error = abs(cost.removed_share(widths) - amount)
    for _, name, other in sorted(others):
        turned = {**widths, name: other}
        turned_error = abs(cost.removed_share(turned) - amount)
        if turned_error < error:
            widths, error = turned, turned_error
    return widths


def _by_greed(
    groups: Sequence[ChannelGroup],
    scores: ChannelVectors,
    cost: CostModel,
    amount: float,
    choices: Choices,
    price: CostModel,
) -> dict[str, int]:
    """Removes, again and again, the block with the least score per price saved that still fits into the budget.

    Scores count from the lowest of all, so that none is negative and a division by cost keeps their order. When nothing
    fits any more, one last block that overshoots goes too if that comes nearer.
    """
    lowest = min(float(scores[group.name].min()) for group in groups)
    sums = {group.name: _running_sums(scores[group.name], lowest) for group in groups}
    dense = {group.name: group.width for group in groups}
    widths = dict(dense)
    target = amount * cost.dense
    removed = 0.0
    while True:
        blocks: list[tuple[float, str, int, float]] = []
        for name, width in widths.items():
            narrower = max((choice for choice in choices[name] if choice < width), default=None)
            saving = 0.0 if narrower is None else cost.saving(widths, name, narrower)
            if narrower is not None and saving > 0.0:
                lost = float(sums[name][dense[name] - narrower] - sums[name][dense[name] - width])
                worth = price.saving(widths, name, narrower)
                blocks.append((lost / worth if worth > 0.0 else math.inf, name, narrower, saving))
        fitting = [block for block in blocks if removed + block[3] <= target * (1 + 1e-9)]
        if not fitting:
            break
        _, name, widths[name], saving = min(fitting)
        removed += saving
    last = min(blocks, key=lambda block: (block[3], block[:2]), default=None)
    if last is not None and removed + last[3] - target < target - removed:
        widths[last[1]] = last[2]
    return widths


def _running_sums(scores: Tensor, lowest: float) -> NDArray[np.float64]:
    """Entry n: the sum of the n lowest scores, counted from `lowest`."""
    rising = np.sort(scores.numpy()) - lowest
    return np.concatenate([[0.0], np.cumsum(rising)])
