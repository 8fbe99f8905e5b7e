"""Reorders the channels of a model so that 2:4 pruning keeps more magnitude. The model computes the same.

Channels of a group (`groups.py`) may come in any order, as long as all that computes them and all that reads them
agree. Only the readers' weights have fours along the channels, so groups do not depend on each other, and each is
searched by itself (`two_four_search`). Weights count as they are exported, times the scale of the norm behind them:
that of a channel which its norm turns down matters less.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.models.rebuild import load_by_shape
from altermoma.progress import track
from altermoma.pruning.channels import ChannelGroup, check_groups
from altermoma.pruning.two_four_rules import FOUR
from altermoma.pruning.two_four_search import F32, WORK, search

ModelT = TypeVar("ModelT", bound=nn.Module)

Orders = Mapping[str, Tensor]
"""Group name -> int64 [width], the channel that comes at each place. Groups that are not named stay as they are."""


@dataclass(frozen=True, kw_only=True)
class GroupGain:
    """Share of the magnitude of a group's readers that 2:4 keeps, before and after.

    Attributes:
        entries: weights that read the group.
    """

    group: str
    width: int
    entries: int
    before: float
    after: float


def find_orders(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    dims: Mapping[str, int],
    *,
    work: int = WORK,
) -> tuple[dict[str, Tensor], tuple[GroupGain, ...]]:
    """Searches an order for every group that a 2:4 weight reads.

    Args:
        model: dense or pruned; unchanged.
        groups: all its channel groups.
        dims: the weights that become 2:4, with their dimension of input channels.
        work: of each group's search.
    """
    sizes = folded_sizes(model, groups, dims)
    orders: dict[str, Tensor] = {}
    gains = []
    for group in track(groups, "Ordering channels"):
        read = _readers(group, sizes, dims)
        if read is None:
            continue
        columns, unit = read
        found = search(columns, unit=unit, work=work)
        orders[group.name] = torch.from_numpy(np.array(found.order, np.int64))
        gains.append(
            GroupGain(group=group.name, width=group.width, entries=columns.size, before=found.before, after=found.after)
        )
    return orders, tuple(gains)


def folded_sizes(model: nn.Module, groups: Sequence[ChannelGroup], names: Iterable[str]) -> dict[str, Tensor]:
    """Magnitudes of weights, each output's times the scale of the batch norm behind it, by name."""
    sizes = {name: model.get_parameter(name).detach().abs() for name in names}
    for group in groups:
        layer = None
        for member in group.members:
            norm, _, leaf = member.tensor.rpartition(".")
            if member.produces and leaf == "weight" and model.get_parameter(member.tensor).ndim > 1:
                # What computes the channels comes before its norm.
                layer = member
            elif leaf == "running_var" and layer is not None and layer.tensor in sizes:
                scale = _scale(model.get_submodule(norm))
                rows = [-1 if dim == layer.dim else 1 for dim in range(sizes[layer.tensor].ndim)]
                sizes[layer.tensor] = sizes[layer.tensor] * scale.reshape(rows)
    return sizes


def _scale(norm: nn.Module) -> Tensor:
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_var is None:
        raise PruningError(f"a norm is a {type(norm).__name__}", expected="a batch norm with running statistics")
    return (norm.weight.detach() / (norm.running_var + norm.eps).sqrt()).abs()


def _readers(group: ChannelGroup, sizes: Mapping[str, Tensor], dims: Mapping[str, int]) -> tuple[F32, int] | None:
    """Magnitudes of all that reads the group, a row per entry of a channel, and how many of those there are.

    Readers whose fours lie within a channel, or are cut by the group's ends, take no part: order does not help them or
    its effect is not the group's alone. So do those that read the channels by other numbers of entries than most.
    """
    found: dict[int, list[F32]] = defaultdict(list)
    for member in group.members:
        if dims.get(member.tensor) != member.dim:
            continue
        whole = (member.offset % FOUR, group.width * member.repeat % FOUR) == (0, 0)
        if whole and member.repeat in (1, 2):
            entries = sizes[member.tensor].movedim(member.dim, 0).flatten(1)
            part = entries[member.offset : member.offset + group.width * member.repeat]
            found[member.repeat].append(part.cpu().float().numpy())
    if not found or group.width * max(found) <= FOUR:
        return None
    unit = max(found, key=lambda repeat: sum(part.size for part in found[repeat]))
    return np.ascontiguousarray(np.concatenate(found[unit], axis=1)), unit


def permuted_state(state: Mapping[str, Tensor], groups: Sequence[ChannelGroup], orders: Orders) -> dict[str, Tensor]:
    """State dict with the channels in the given orders; untouched tensors are shared.

    Raises:
        PruningError: groups that do not fit the tensors, or an order that is none of its group's channels.
    """
    check_groups(groups, {name: tensor.shape for name, tensor in state.items()})
    check_orders(groups, orders)
    permuted = dict(state)
    for name, dim in dict.fromkeys((m.tensor, m.dim) for g in groups if g.name in orders for m in g.members):
        entries = permuted_entries(groups, orders, name, dim, state[name].shape[dim])
        permuted[name] = permuted[name].index_select(dim, entries.to(state[name].device))
    return permuted


def permuted_entries(groups: Sequence[ChannelGroup], orders: Orders, tensor: str, dim: int, size: int) -> Tensor:
    """Which of the `size` entries of a tensor's dimension comes at each place, int64 [size]."""
    entries = torch.arange(size)
    for group in groups:
        for member in group.members if group.name in orders else ():
            if (member.tensor, member.dim) == (tensor, dim):
                entries[member.indices(torch.arange(group.width))] = member.indices(orders[group.name])
    return entries


def permuted(model: ModelT, groups: Sequence[ChannelGroup], orders: Orders) -> ModelT:
    """A new model with the channels in the given orders, equal to `model` but for rounding; `model` is unchanged."""
    state = permuted_state(model.state_dict(), groups, orders)
    other = copy.deepcopy(model)
    load_by_shape(other, state)
    return other


def moved(orders: Orders) -> Iterator[str]:
    """Groups whose channels are not where they were."""
    for name, order in orders.items():
        if not torch.equal(order, torch.arange(len(order))):
            yield name


def check_orders(groups: Sequence[ChannelGroup], orders: Orders) -> None:
    """Each order must name every channel of its group once.

    Raises:
        PruningError: naming the first group whose order does not.
    """
    widths = {group.name: group.width for group in groups}
    for name, order in orders.items():
        if name not in widths:
            raise PruningError(f"unknown channel group {name}", expected="a group of this model")
        if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(widths[name])):
            raise PruningError(
                f"the order of {name} is {order.tolist()}", expected=f"each of 0..{widths[name] - 1} once"
            )
