"""Channels and single weights as the same work for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from altermoma.models.batch import FrameBatch
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.indicators import ChannelTerms
from altermoma.pruning.latency import StageTable
from altermoma.pruning.masking import Batch, LossFunction
from altermoma.pruning.methods.scoring import Scoring
from altermoma.pruning.plan import plan_pruning
from altermoma.pruning.selection import select
from altermoma.pruning.surgery import entry_masks
from altermoma.pruning.unstructured import ElementTerms, Masks, Threshold, global_masks
from altermoma.recipe import PruneRecipe


def channel_work(
    model: nn.Module,
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    reference: FrameBatch,
    tables: Mapping[str, StageTable] | None = None,
) -> Scoring:
    """Channel groups of the recipe's scope; a budget that cannot be met is an error here, before any scoring.

    Args:
        model: the trained dense fusion model.
        batches: as many as the recipe's method takes (`choose.batches_of`).
        recipe: method, budget and granularity.
        loss_fn: the task loss.
        reference: frame on which FLOPs are counted.
        tables: measured milliseconds, where the budget is latency.
    """
    plan = plan_pruning(model, recipe, reference, tables)

    def cut(scores: ChannelVectors, share: float) -> Masks:
        chosen = select(plan.scoped, scores, plan.cost, plan.with_amount(share))
        return entry_masks(model, plan.groups, chosen.keep)

    terms = ChannelTerms(model, plan.scoped, recipe.aggregation)
    return Scoring(model=model, terms=terms, batches=batches, loss_fn=loss_fn, recipe=recipe, cut=cut)


def weight_work(
    model: nn.Module,
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    reference: FrameBatch | None = None,
    per: Threshold = "global",
) -> Scoring:
    """Single weights of the recipe's scope; `reference` is not needed. `per`: see `unstructured.global_masks`."""

    def cut(scores: ChannelVectors, share: float) -> Masks:
        return global_masks(model, scores, share, per)

    terms = ElementTerms(model, recipe.scope)
    return Scoring(model=model, terms=terms, batches=batches, loss_fn=loss_fn, recipe=recipe, cut=cut)
