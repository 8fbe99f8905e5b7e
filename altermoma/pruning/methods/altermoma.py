"""AlterMOMA as one method among the others: AlterEva scores with the recipe's batches and weights, once or in rounds.

Indicators are slopes at the dense weights: they tell what removing a little does. Of nine tenths that go at once most
slopes change on the way. In rounds a part goes, and the contribution of what stays is measured again, as FORCE (de
Jorge et al., ICLR 2021) does with SNIP: what a removed unit shared with another is then the other's alone. The
redundancy is that of the dense model, as in the paper, which has one round: it takes the same part of each contribution
in all rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from altermoma.errors import PruningError
from altermoma.progress import track
from altermoma.pruning.altereva import altereva
from altermoma.pruning.channels import ChannelGroup, ChannelVectors
from altermoma.pruning.masking import preserved
from altermoma.pruning.methods.scoring import Scoring, mean_magnitude, share_of_round
from altermoma.pruning.one_round import altereva_options, indicators_of
from altermoma.pruning.unstructured import apply_masks


def altermoma_scores(work: Scoring) -> ChannelVectors:
    """Scores after `score_rounds` rounds; what earlier rounds removed has the lowest.

    Raises:
        PruningError: rounds without a contribution (alpha = 0), or what `measure_terms` refuses.
    """
    rounds, options = work.recipe.score_rounds, altereva_options(work.recipe)
    if rounds > 1 and options.alpha <= 0.0:
        raise PruningError(
            f"prune.score_rounds = {rounds} with prune.alpha = {options.alpha:g}",
            expected="a contribution to measure again after each round",
            remedy="set prune.score_rounds = 1, or prune.alpha above 0",
        )
    dense = indicators_of(work.model, work.terms, work.batches, work.recipe, work.loss_fn, work.kept)
    scores = altereva(work.terms.groups, dense, options)
    if rounds == 1:
        return scores
    worth = _worth(scores, altereva(work.terms.groups, dense, dataclasses.replace(options, beta=0.0)))
    with preserved(work.model):
        for done in track(range(1, rounds), "Rounds of AlterMOMA"):
            apply_masks(work.model, work.cut(scores, share_of_round(work.recipe.amount, done, rounds)))
            scores = _scored_again(work, worth, done)
    return scores


def _worth(scores: ChannelVectors, contributions: ChannelVectors) -> ChannelVectors:
    """What redundancy leaves of each unit's contribution in the dense model: 1 is all of it.

    With the paper's difference it is negative where redundancy outweighs the contribution: such a unit goes before all
    others whatever it comes to contribute, the sooner the more that is.
    """
    return {
        name: torch.where(contribution > 0, scores[name] / contribution, 1.0)
        for name, contribution in contributions.items()
    }


def _scored_again(work: Scoring, worth: ChannelVectors, done: int) -> ChannelVectors:
    """Scores of a model from which `done` rounds have removed something."""
    contribution = dataclasses.replace(work.recipe, beta=0.0)
    kept = work.kept.within(f"round-{done}")
    found = indicators_of(work.model, work.terms, work.batches, contribution, work.loss_fn, kept)
    reached = _reached(work.terms.groups, found.deci)
    now = {group.name: torch.zeros_like(found.deci[group.name]) for group in work.terms.groups}
    now |= altereva(reached, found, altereva_options(contribution))
    scores = {name: vector * worth[name] for name, vector in now.items()}
    stays = {name: size.cpu() > 0 for name, size in mean_magnitude(work.model, work.terms).items()}
    return _gone_below(scores, stays)


def _reached(groups: Sequence[ChannelGroup], deci: ChannelVectors) -> list[ChannelGroup]:
    """Groups of the partitions that still contribute: a branch may have been cut through by an earlier round."""
    alive = {group.partition for group in groups if bool(deci[group.name].any())}
    return [group for group in groups if group.partition in alive]


def _gone_below(scores: ChannelVectors, stays: ChannelVectors) -> ChannelVectors:
    """What is gone gets a score just below all others: a selection that counts the score lost must see no gap."""
    least = torch.stack([vector.min() for vector in scores.values()]).min()
    below = torch.nextafter(least, torch.full_like(least, -torch.inf))
    return {name: torch.where(stays[name], vector, below) for name, vector in scores.items()}
