"""Deactivated contribution (DeCI) and reactivated redundancy (ReRI), per channel.

What the paper leaves open is settled thus. `theta` of a channel is every trainable slice that disappears with it. A
first-order term is theta * gradient, summed over the slices of the channel ("channel", the loss change of removing it
at once) or taken element by element ("element"); its absolute value is summed over batches, so that batches do not
cancel. The two terms of ReRI are taken on the *same* batches, so that their difference is what reactivation changed
and not the noise between batches; with one batch this is eq. 7-10 to the letter. Which statistics batch norms use is an
option (see `preserved`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.progress import track
from altermoma.pruning.channels import Aggregation, ChannelGroup, ChannelVectors, Slice
from altermoma.pruning.kept import Kept
from altermoma.pruning.masking import Batch, Loss, Masked, gradients, preserved, reactivate
from altermoma.recipe import Norms


@dataclass(frozen=True, kw_only=True)
class ScoringData:
    """Batches an indicator is estimated on.

    Attributes:
        reactivation: D_1 .. D_B, one gradient step each.
        terms: batches on which the first-order terms before and after are compared.
        norms: whose statistics batch norms use (`masking.preserved`).
        starts_together: the first of `terms` is the first of `reactivation`, whose gradient then serves twice.
        kept: where a killed process left off with both indicators.
    """

    reactivation: Sequence[Batch]
    terms: Sequence[Batch]
    norms: Norms
    starts_together: bool = False
    kept: Kept = field(default_factory=Kept)


class Terms(Protocol):
    """First-order terms of what is scored: channels, or single elements.

    Attributes:
        groups: what is scored, with a partition and a width each.
        names, parameters: that gradients are needed of.
    """

    groups: tuple[ChannelGroup, ...]
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]

    def zeros(self) -> ChannelVectors:
        """One zero for each channel."""

    def magnitude(self, theta: Mapping[str, Tensor], gradient: Sequence[Tensor]) -> ChannelVectors:
        """|term| of every channel: `theta` by name, one gradient per entry of `parameters`."""


class ChannelTerms:
    """Sums first-order terms over the slices of each channel.

    Args:
        model: gives the trainable parameters; a parameter in two slices of two groups counts in both.
        groups: channel groups to score.
        aggregation: "channel" for |sum of terms|, "element" for the sum of |term|.

    Raises:
        PruningError: a group none of whose slices is trainable.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], aggregation: Aggregation) -> None:
        self.groups, self.aggregation = tuple(groups), aggregation
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._slices: dict[str, list[tuple[ChannelGroup, Slice]]] = {}
        for group in groups:
            members = [member for member in group.members if member.tensor in trainable]
            if not members:
                raise PruningError(
                    f"every parameter of channel group {group.name} is frozen",
                    expected="trainable parameters (requires_grad)",
                    remedy="unfreeze the backbone before scoring, or leave its partition out of prune.scope",
                )
            for member in members:
                self._slices.setdefault(member.tensor, []).append((group, member))
        self.names = tuple(self._slices)
        self.parameters: tuple[Tensor, ...] = tuple(trainable[name] for name in self.names)

    def zeros(self) -> ChannelVectors:
        return {group.name: torch.zeros(group.width, dtype=torch.float64) for group in self.groups}

    def magnitude(self, theta: Mapping[str, Tensor], gradient: Sequence[Tensor]) -> ChannelVectors:
        total = self.zeros()
        for name, slope in zip(self.names, gradient, strict=True):
            term = theta[name].detach() * slope
            if self.aggregation == "element":
                term = term.abs()
            for group, member in self._slices[name]:
                total[group.name] += _per_channel(term, member, group.width)
        return {name: vector.abs() for name, vector in total.items()}


def _per_channel(term: Tensor, member: Slice, width: int) -> Tensor:
    """Sum of `term` over all but the channels of the slice, float64 [width]."""
    others = [dim for dim in range(term.ndim) if dim != member.dim]
    line = term.sum(dim=others, dtype=torch.float64) if others else term.double()
    covered = line.narrow(0, member.offset, width * member.repeat)
    return covered.reshape(width, member.repeat).sum(1).cpu()


def deci(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    terms: Terms,
    norms: Norms,
    kept: Kept | None = None,
) -> ChannelVectors:
    """DeCI (eq. 4-6): first-order terms at the initial parameters, nothing masked, summed over batches."""
    kept = kept or Kept()
    done, found = kept.load("deci")
    total = found or terms.zeros()
    with preserved(model, norms) as theta:
        for batch in track(batches[done:], "Scores, nothing masked"):
            _add(total, terms.magnitude(theta, gradients(loss(batch, "none"), terms.parameters)))
            done += 1
            kept.save("deci", done, total)
    return total


def reri(model: nn.Module, loss: Loss, data: ScoringData, terms: Terms, masked: Masked, lr: float) -> ChannelVectors:
    """ReRI (eq. 7-10) with one branch masked: |term before reactivation - term after it|, summed over `data.terms`.

    The gradient after reactivation is taken at the reactivated parameters and multiplied by the initial ones (eq. 9).
    Needs, beside the model, one copy of the parameters and two gradients. Parameters come back bit for bit.

    Raises:
        PruningError: loss or gradient not finite.
    """
    kept = data.kept
    with preserved(model, data.norms) as theta:
        first = _reactivate(model, loss, data, terms, masked, lr)
        done, found = kept.load(f"reri-{masked}")
        total = found or terms.zeros()
        for batch in track(data.terms[done:], f"Scores, {masked} masked"):
            if first and done == 0:
                change, first = first, []
            else:
                with _exchanged(model, theta):
                    change = gradients(loss(batch, masked), terms.parameters)
            for gradient, later in zip(change, gradients(loss(batch, masked), terms.parameters), strict=True):
                gradient.sub_(later)
            _add(total, terms.magnitude(theta, change))
            done += 1
            kept.save(f"reri-{masked}", done, total)
    return total


def _reactivate(
    model: nn.Module, loss: Loss, data: ScoringData, terms: Terms, masked: Masked, lr: float
) -> list[Tensor]:
    """Reactivation, going on where a killed process stopped.

    Returns:
        The first step's gradients of `terms.parameters`: those of its batch at the initial parameters, a term of ReRI
        that need not be computed again. None where the first step was taken by an earlier process.
    """
    name = f"reactivated-{masked}"
    done, weights = data.kept.load(name)
    with torch.no_grad():
        for key, weight in weights.items():
            model.get_parameter(key).copy_(weight)
    first: list[Tensor] = []
    for batch in track(data.reactivation[done:], f"Reactivation, {masked} masked"):
        steps = reactivate(model, loss, batch, masked, lr)
        if done == 0 and data.starts_together:
            first = [steps[id(parameter)] for parameter in terms.parameters]
        del steps  # else two sets of gradients would live through the next step
        done += 1
        data.kept.save(name, done, dict(model.named_parameters()))
    return first


@contextmanager
def _exchanged(model: nn.Module, theta: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the model has the parameters `theta`; storage is swapped, nothing is copied."""

    def swap() -> None:
        for name, parameter in model.named_parameters():
            parameter.data, theta[name].data = theta[name].data, parameter.data

    swap()
    try:
        yield
    finally:
        swap()


def _add(total: ChannelVectors, more: ChannelVectors) -> None:
    for name, vector in more.items():
        total[name] += vector
