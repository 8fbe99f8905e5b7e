"""Physical removal of channels, and the masked dense model it must equal."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from altermoma.models.rebuild import load_by_shape
from altermoma.pruning.channels import ChannelGroup, Keep, check_groups, check_keep

ModelT = TypeVar("ModelT", bound=nn.Module)


def removed_channels(group: ChannelGroup, keep: Keep) -> Tensor:
    """Channels of the group that go, int64, sorted; none where `keep` does not name the group."""
    if group.name not in keep:
        return torch.zeros(0, dtype=torch.int64)
    gone = torch.ones(group.width, dtype=torch.bool)
    gone[keep[group.name]] = False
    return gone.nonzero()[:, 0]


def kept_entries(groups: Sequence[ChannelGroup], keep: Keep, tensor: str, dim: int, size: int) -> Tensor:
    """Which of the `size` entries of a dense tensor's dimension stay, rising int64."""
    stays = torch.ones(size, dtype=torch.bool)
    for group in groups:
        removed = removed_channels(group, keep)
        for member in group.members:
            if (member.tensor, member.dim) == (tensor, dim):
                stays[member.indices(removed)] = False
    return stays.nonzero()[:, 0]


def shrink_state(state: Mapping[str, Tensor], groups: Sequence[ChannelGroup], keep: Keep) -> dict[str, Tensor]:
    """State dict without the removed channels: one index selection per touched tensor dimension.

    Args:
        state: state dict of the dense model.
        groups: its channel groups.
        keep: channels that stay.

    Returns:
        New tensors; untouched ones are shared with `state`.

    Raises:
        PruningError: groups that do not fit the tensors, or kept channels that do not fit the groups.
    """
    check_groups(groups, {name: tensor.shape for name, tensor in state.items()})
    check_keep(groups, keep)
    gone: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for group in groups:
        removed = removed_channels(group, keep)
        for member in group.members if removed.numel() else ():
            gone[member.tensor, member.dim].append(member.indices(removed))
    shrunk = dict(state)
    for (name, dim), entries in gone.items():
        stays = torch.ones(state[name].shape[dim], dtype=torch.bool)
        stays[torch.cat(entries)] = False
        index = stays.nonzero()[:, 0].to(state[name].device)
        shrunk[name] = shrunk[name].index_select(dim, index)
    return shrunk


def shrink(model: ModelT, groups: Sequence[ChannelGroup], keep: Keep) -> ModelT:
    """A new model from which the channels are physically gone; `model` is unchanged."""
    state = shrink_state(model.state_dict(), groups, keep)
    smaller = copy.deepcopy(model)
    load_by_shape(smaller, state)
    return smaller


def mask(model: ModelT, groups: Sequence[ChannelGroup], keep: Keep) -> ModelT:
    """A dense copy with the removed channels at exactly zero, the reference that `shrink` must equal.

    Everything that computes a removed channel is zeroed (weight row, bias, norm scale and shift; running statistics
    stay, they no longer matter), and everything that reads it.
    """
    masked = copy.deepcopy(model)
    check_groups(groups, {name: tensor.shape for name, tensor in masked.state_dict().items()})
    with torch.no_grad():
        for name, stays in entry_masks(masked, groups, keep).items():
            masked.get_parameter(name).mul_(stays)
    return masked


def entry_masks(model: nn.Module, groups: Sequence[ChannelGroup], keep: Keep) -> dict[str, Tensor]:
    """The entries of parameters that stay when channels go, True or False, by name; untouched ones are left out."""
    check_keep(groups, keep)
    parameters = dict(model.named_parameters())
    masks: dict[str, Tensor] = {}
    for group in groups:
        removed = removed_channels(group, keep)
        for member in group.members if removed.numel() else ():
            if member.tensor in parameters:
                tensor = parameters[member.tensor]
                stays = masks.setdefault(member.tensor, torch.ones_like(tensor, dtype=torch.bool))
                stays.index_fill_(member.dim, member.indices(removed).to(tensor.device), False)
    return masks
