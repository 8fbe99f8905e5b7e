"""What every pruning method is given, and how its scores become a selection: score -> cut -> mask or surgery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.indicators import Terms
from altermoma.pruning.kept import Kept
from altermoma.pruning.masking import Batch, LossFunction
from altermoma.pruning.unstructured import Masks
from altermoma.recipe import PruneRecipe

Cut = Callable[[ChannelVectors, float], Masks]
"""Scores and the share to remove -> entries that stay: the selection, for methods that prune in rounds."""

Retrain = Callable[[nn.Module, Masks, int], nn.Module]
"""Trains a copy of a model with entries held at zero, in round 1, 2, ...; the model itself stays as it is."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The common ground of all methods. Channels and single weights differ in `terms` and `cut` alone.

    Attributes:
        model: the trained dense model; every method leaves it bit for bit as it is.
        terms: of what is scored.
        batches: `choose.batches_of(recipe)` of them.
        loss_fn: the task loss.
        recipe: method, amount and the method's options.
        cut: the selection that the scores are for.
        retrain: training between the rounds of IMP; other methods do without.
        kept: where a killed process left off with AlterMOMA's scores.
    """

    model: nn.Module
    terms: Terms
    batches: Sequence[Batch]
    loss_fn: LossFunction
    recipe: PruneRecipe
    cut: Cut
    retrain: Retrain | None = None
    kept: Kept = field(default_factory=Kept)


def mean_magnitude(model: nn.Module, terms: Terms) -> ChannelVectors:
    """Mean |weight| over the entries of each unit, so that long channels are not favoured over short ones."""
    parameters = dict(model.named_parameters())
    chosen = {name: parameters[name].detach() for name in terms.names}
    sums = terms.magnitude(chosen, [tensor.sign() for tensor in chosen.values()])
    counts = terms.magnitude(
        {name: torch.ones_like(tensor) for name, tensor in chosen.items()},
        [torch.ones_like(tensor) for tensor in chosen.values()],
    )
    return {name: sums[name] / counts[name] for name in sums}


def share_of_round(amount: float, done: int, rounds: int) -> float:
    """Share removed after `done` of `rounds` rounds: what is kept shrinks by the same factor in each."""
    kept: float = (1.0 - amount) ** (done / rounds)
    return 1.0 - kept


def check_scores(scores: ChannelVectors, method: str) -> None:
    """Refuses scores that tell nothing apart.

    Raises:
        PruningError: a score that is not finite, or nothing but zeros.
    """
    every: list[Tensor] = list(scores.values())
    broken = [name for name, vector in scores.items() if not bool(torch.isfinite(vector).all())]
    if broken:
        raise PruningError(
            f"{method} gives scores that are not finite, in {broken[0]} and {len(broken) - 1} others",
            expected="finite scores",
            remedy="check that the checkpoint is trained; for prospr, lower prune.prospr_lr",
        )
    if not any(bool((vector != 0).any()) for vector in every):
        raise PruningError(
            f"all scores of {method} are zero: no gradient reaches what is to be pruned",
            expected="a loss that depends on the weights",
            remedy="score a trained model on frames with objects",
        )
