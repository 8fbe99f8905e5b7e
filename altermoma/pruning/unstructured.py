"""Unstructured AlterMOMA (paper, Algorithm 1): a mask over single weights, from one global threshold.

Masked are the weights of convolutions, linear layers and attention; biases, norms and position tables stay. Nothing
gets smaller or faster: the masks are for comparison with the paper's 80, 85 and 90 %.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelGroup, ChannelVectors
from altermoma.pruning.masking import Batch, LossFunction
from altermoma.pruning.one_round import score_terms
from altermoma.pruning.streams import Partitioned
from altermoma.recipe import Partition, PruneRecipe

ModelT = TypeVar("ModelT", bound=nn.Module)
Threshold = Literal["global", "partition"]

Masks = Mapping[str, Tensor]
"""Weight name -> bool of its shape, True where the weight stays."""


class ElementTerms:
    """First-order terms of every weight by itself: each weight tensor is a group, each of its entries a channel.

    Args:
        model: says which partition a weight belongs to.
        scope: partitions whose weights are scored.

    Raises:
        PruningError: nothing to score, or a model without partitions.
    """

    def __init__(self, model: nn.Module, scope: Sequence[Partition]) -> None:
        if not isinstance(model, Partitioned):
            raise PruningError(f"{type(model).__name__} has no partition_of", expected="a model with partitions")
        found = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and parameter.ndim > 1
            and name.endswith("weight")
            and model.partition_of(name) in scope
        }
        if not found:
            raise PruningError(f"no trainable weight in scope {tuple(scope)}", expected="weights of that partition")
        self.names = tuple(found)
        self.parameters: tuple[Tensor, ...] = tuple(found.values())
        self.groups = tuple(
            ChannelGroup(name=name, partition=model.partition_of(name), width=weight.numel(), members=())
            for name, weight in found.items()
        )

    def zeros(self) -> ChannelVectors:
        # As many numbers as weights, several times over: single precision, as the gradients.
        return {group.name: torch.zeros(group.width) for group in self.groups}

    def magnitude(self, theta: Mapping[str, Tensor], gradient: Sequence[Tensor]) -> ChannelVectors:
        return {
            group.name: (theta[group.name] * slope).abs_().flatten().float().cpu()
            for group, slope in zip(self.groups, gradient, strict=True)
        }


def element_scores(
    model: nn.Module, batches: Sequence[Batch], recipe: PruneRecipe, loss_fn: LossFunction
) -> ChannelVectors:
    """AlterEva score (eq. 11-13) of every weight in the recipe's scope, flat by name: one round of `prune.score`."""
    return score_terms(model, ElementTerms(model, recipe.scope), batches, recipe, loss_fn)


def global_masks(
    model: nn.Module, scores: ChannelVectors, sparsity: float, per: Threshold = "global"
) -> dict[str, Tensor]:
    """Keeps the weights with the highest scores, over all of them; ties go by order.

    Args:
        model: gives the shapes.
        scores: of every weight that may go, flat by name.
        sparsity: share of those that go, at least 0 and below 1.
        per: one threshold for all, or one for each partition, which then all lose the same share.

    Raises:
        PruningError: a sparsity out of range, or scores that do not fit the weights.
    """
    if not 0.0 <= sparsity < 1.0:
        raise PruningError(f"a sparsity of {sparsity}", expected="at least 0 and below 1")
    weights = dict(model.named_parameters())
    for name, vector in scores.items():
        if name not in weights or vector.numel() != weights[name].numel() or not bool(torch.isfinite(vector).all()):
            raise PruningError(f"scores of {name}", expected="one finite number for each weight of a layer")
    masks: dict[str, Tensor] = {}
    for names in _ranked_together(model, scores, per):
        everything = torch.cat([scores[name].flatten() for name in names])
        stays = _highest(everything, everything.numel() - round(sparsity * everything.numel()))
        parts = torch.split(stays, [scores[name].numel() for name in names])
        masks |= {name: part.reshape(weights[name].shape) for name, part in zip(names, parts, strict=True)}
    return {name: masks[name] for name in scores}


def _ranked_together(model: nn.Module, scores: ChannelVectors, per: Threshold) -> Sequence[Sequence[str]]:
    """Names of the weights that share a threshold."""
    if per == "global":
        return [list(scores)]
    if not isinstance(model, Partitioned):
        raise PruningError(f"{type(model).__name__} has no partition_of", expected="a model with partitions")
    together: dict[str, list[str]] = {}
    for name in scores:
        together.setdefault(model.partition_of(name), []).append(name)
    return list(together.values())


def _highest(scores: Tensor, count: int) -> Tensor:
    """Bool, True for exactly `count` entries: the highest, and of those at the threshold the first."""
    threshold = scores.kthvalue(scores.numel() - count + 1).values
    stays = scores > threshold
    ties = (scores == threshold).nonzero()[:, 0]
    stays[ties[: count - int(stays.sum())]] = True
    return stays


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Sets the weights that go to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            weight.mul_(mask.to(weight.device))


def masked_model(model: ModelT, masks: Masks) -> ModelT:
    """A copy with the weights that go at zero; all others are those of `model`."""
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    return masked


@dataclass(frozen=True, kw_only=True)
class SparsityReport:
    """Share of weights that are gone, of those that were scored: all, by partition, by weight tensor."""

    total: float
    by_partition: dict[str, float]
    by_layer: dict[str, float]


def sparsity_report(model: Partitioned, masks: Masks) -> SparsityReport:
    """Counts masks."""
    partitions: dict[str, list[Tensor]] = {}
    for name, mask in masks.items():
        partitions.setdefault(model.partition_of(name), []).append(mask)
    return SparsityReport(
        total=_gone(list(masks.values())),
        by_partition={partition: _gone(found) for partition, found in partitions.items()},
        by_layer={name: _gone([mask]) for name, mask in masks.items()},
    )


def _gone(masks: Sequence[Tensor]) -> float:
    return 1.0 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
