"""AlterMOMA as one method among the others: AlterEva scores with the recipe's batches and weights."""

from __future__ import annotations

from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.methods.scoring import Scoring
from altermoma.pruning.prune import score_terms


def altermoma_scores(work: Scoring) -> ChannelVectors:
    return score_terms(work.model, work.terms, work.batches, work.recipe, work.loss_fn, work.kept)
