"""Channel groups: which slices of which tensors disappear together. `groups.py` derives them from a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from altermoma.errors import PruningError
from altermoma.recipe import Partition

Keep = Mapping[str, Tensor]
"""Group name -> sorted int64 indices of the channels that stay. Groups that are not named keep all."""

PARTITIONS: tuple[Partition, ...] = ("camera", "lidar", "fusion")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Where the channels of a group lie along one dimension of one tensor.

    Channel c covers the entries offset + c * repeat ... offset + (c + 1) * repeat - 1 of dimension `dim`.

    Attributes:
        tensor: name in the model's state dict.
        offset: first entry, for a concatenated input or a convolution that computes several things.
        repeat: consecutive entries per channel: height cells folded into channels, for one.
        produces: True where the entry computes the channel (weight row, bias, norm), False where it reads it.
    """

    tensor: str
    dim: int
    offset: int = 0
    repeat: int = 1
    produces: bool

    def indices(self, channels: Tensor) -> Tensor:
        """Entries of the dimension that `channels` cover, int64 [len(channels) * repeat]."""
        return (self.offset + channels[:, None] * self.repeat + torch.arange(self.repeat)).flatten()


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that exist or vanish as one: residual partners share a group.

    Attributes:
        name: the convolution (first of them) that computes the channels.
        partition: the partition of what computes them; decides the mask that scores them.
        width: channels of the dense model.
        members: every slice, producers and consumers.
    """

    name: str
    partition: Partition
    width: int
    members: tuple[Slice, ...]


def check_groups(groups: Sequence[ChannelGroup], shapes: Mapping[str, Sequence[int]]) -> None:
    """Checks the table against tensor shapes: bounds, overlaps, unique names, producers and consumers present.

    Args:
        groups: the whole table of a model.
        shapes: shape of every tensor of its state dict.

    Raises:
        PruningError: naming the group and tensor that do not fit.
    """
    names = [group.name for group in groups]
    if len(set(names)) != len(names):
        raise PruningError("two channel groups share a name", expected="unique names")
    for group in groups:
        _check_group(group, shapes)
    along: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
    for group in groups:
        for member in group.members:
            stop = member.offset + group.width * member.repeat
            along.setdefault((member.tensor, member.dim), []).append((member.offset, stop, group.name))
    for (tensor, dim), spans in along.items():
        spans.sort()
        for (_, stop, owner), (start, _, name) in pairwise(spans):
            if start < stop:
                raise PruningError(
                    f"{tensor}, dimension {dim}, entry {start}: in {owner} and {name}",
                    expected="one channel group per entry",
                )


def _check_group(group: ChannelGroup, shapes: Mapping[str, Sequence[int]]) -> None:
    if group.partition not in PARTITIONS:
        raise PruningError(
            f"channel group {group.name} is in partition {group.partition!r}",
            expected="one of " + ", ".join(PARTITIONS),
        )
    if {member.produces for member in group.members} != {True, False}:
        raise PruningError(
            f"channel group {group.name} lacks a producer or a consumer", expected="at least one of each"
        )
    for member in group.members:
        shape = shapes.get(member.tensor)
        if shape is None:
            raise PruningError(f"channel group {group.name} names {member.tensor}", expected="a tensor of the model")
        stop = member.offset + group.width * member.repeat
        if not 0 <= member.dim < len(shape) or member.offset < 0 or stop > shape[member.dim]:
            raise PruningError(
                f"channel group {group.name} covers entries {member.offset}..{stop - 1} of dimension {member.dim} of "
                f"{member.tensor}, whose shape is {tuple(shape)}",
                expected="entries inside the tensor",
            )


def check_keep(groups: Sequence[ChannelGroup], keep: Keep) -> None:
    """Checks that each index set is non-empty, sorted, unique, in range and belongs to a known group.

    Raises:
        PruningError: naming the first group that is wrong.
    """
    widths = {group.name: group.width for group in groups}
    for name, index in keep.items():
        if name not in widths:
            raise PruningError(f"unknown channel group {name}", expected="a group of this model")
        if index.ndim != 1 or index.numel() == 0:
            raise PruningError(f"no channel is kept in {name}", expected="at least one")
        rising = bool((index[1:] > index[:-1]).all())
        if not rising or int(index[0]) < 0 or int(index[-1]) >= widths[name]:
            raise PruningError(
                f"kept channels of {name} are {index.tolist()}", expected=f"rising, within 0..{widths[name] - 1}"
            )


def select_groups(groups: Sequence[ChannelGroup], scope: Sequence[Partition]) -> tuple[ChannelGroup, ...]:
    """The groups whose partition is in scope; an empty result is an error."""
    for partition in scope:
        if partition not in PARTITIONS:
            raise PruningError(f"scope names partition {partition!r}", expected="one of " + ", ".join(PARTITIONS))
    chosen = tuple(group for group in groups if group.partition in scope)
    if not chosen:
        found = ", ".join(sorted({group.partition for group in groups})) or "none"
        raise PruningError(f"no channel group in scope {tuple(scope)}", expected=f"a partition with groups: {found}")
    return chosen


ChannelVectors = dict[str, Tensor]
"""Group name -> one float64 number per channel, [width]."""

Aggregation = Literal["channel", "element"]
