"""The method that a recipe names."""

from __future__ import annotations

import time
from dataclasses import dataclass

from typing_extensions import assert_never

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.methods.altermoma import altermoma_scores
from altermoma.pruning.methods.chance import chance_scores
from altermoma.pruning.methods.imp import imp_scores
from altermoma.pruning.methods.magnitude import magnitude_scores
from altermoma.pruning.methods.prospr import prospr_scores
from altermoma.pruning.methods.scoring import Scoring, check_scores
from altermoma.pruning.methods.snip import snip_scores
from altermoma.pruning.methods.synflow import synflow_scores
from altermoma.pruning.one_round import batches_needed
from altermoma.recipe import PruneRecipe


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of every unit, and the seconds that they took."""

    scores: ChannelVectors
    seconds: float


def scores_of(work: Scoring) -> Scored:
    """Scores of the recipe's method. Deterministic; the model comes back bit for bit.

    Raises:
        PruningError: an amount outside (0, 1), too few batches, or scores that are not finite or tell nothing apart.
    """
    if not 0.0 < work.recipe.amount < 1.0:
        raise PruningError(
            f"prune.amount = {work.recipe.amount:g}",
            expected="a share to remove, above 0 and below 1",
            remedy="0.5 is half",
        )
    needed = batches_of(work.recipe)
    if len(work.batches) < needed:
        raise PruningError(
            f"{len(work.batches)} batches to score on",
            expected=f"{needed} or more for {work.recipe.method}",
            remedy="give more frames, or lower the batches of the recipe's [prune]",
        )
    started = time.process_time()
    scores = _scores(work)
    check_scores(scores, work.recipe.method)
    return Scored(scores=scores, seconds=time.process_time() - started)


def _scores(work: Scoring) -> ChannelVectors:  # noqa: PLR0911 - one return per method
    match work.recipe.method:
        case "altermoma":
            return altermoma_scores(work)
        case "imp":
            return imp_scores(work)
        case "snip":
            return snip_scores(work)
        case "synflow":
            return synflow_scores(work)
        case "prospr":
            return prospr_scores(work)
        case "magnitude":
            return magnitude_scores(work)
        case "random":
            return chance_scores(work)
        case unknown:
            assert_never(unknown)


def batches_of(recipe: PruneRecipe) -> int:
    """Scoring batches that the recipe's method takes."""
    match recipe.method:
        case "altermoma":
            return batches_needed(recipe)
        case "snip":
            return recipe.score_batches
        case "prospr":
            return recipe.prospr_draws * (recipe.prospr_steps + 1)
        case _:
            return 0
