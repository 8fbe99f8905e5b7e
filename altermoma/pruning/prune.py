"""Structured AlterMOMA from end to end: scores, selection, surgery, and the record of what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import nn

from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.progress import say
from altermoma.pruning.channels import ChannelGroup, ChannelVectors, Keep
from altermoma.pruning.costs import CostModel
from altermoma.pruning.flops import FlopReport, count_flops, time_costs
from altermoma.pruning.kept import Kept
from altermoma.pruning.latency import StageTable
from altermoma.pruning.masking import Batch, LossFunction
from altermoma.pruning.methods.choose import scores_of
from altermoma.pruning.methods.work import channel_work
from altermoma.pruning.one_round import batches_needed
from altermoma.pruning.plan import Plan, plan_pruning
from altermoma.pruning.selection import keep_all, select
from altermoma.pruning.surgery import shrink
from altermoma.recipe import PruneRecipe

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class PruneResult(Generic[ModelT]):
    """A pruned model and how it came about.

    Attributes:
        model: new, physically smaller; not fine-tuned yet.
        groups: all channel groups of the dense model.
        keep: rising channel indices of each group in scope.
        scores: AlterEva scores of each group in scope; empty where nothing was to be removed.
        widths_before, widths_after: channels of every group.
        flops_before, flops_after: on the reference frame.
        asked, got: share of `budget` asked for and removed.
    """

    model: ModelT
    groups: tuple[ChannelGroup, ...]
    keep: Keep
    scores: ChannelVectors
    widths_before: dict[str, int]
    widths_after: dict[str, int]
    flops_before: FlopReport
    flops_after: FlopReport
    params_before: int
    params_after: int
    budget: str
    asked: float
    got: float

    def to_json(self) -> dict[str, Any]:
        """Record without tensors: widths, costs and the budget."""
        return {
            "budget": self.budget,
            "asked": self.asked,
            "got": self.got,
            "widths_before": self.widths_before,
            "widths_after": self.widths_after,
            "partitions": {group.name: group.partition for group in self.groups},
            "flops_before": self.flops_before.to_json(),
            "flops_after": self.flops_after.to_json(),
            "params_before": self.params_before,
            "params_after": self.params_after,
        }


def prune(
    model: ModelT,
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    reference: FrameBatch | None = None,
    kept: Kept | None = None,
) -> PruneResult[ModelT]:
    """Scores, selects and removes channels. Deterministic; `model` comes back bit for bit as it was.

    Args:
        model: the trained dense fusion model.
        batches: (FrameBatch, truths) pairs, `batches_needed(recipe)` of them: DeCI uses the first `score_batches`,
            reactivation the first `reactivation_batches`, ReRI the first `reri_batches` of those.
        recipe: budget, scope, weights and granularity.
        loss_fn: the task loss.
        reference: frame (or frames) on which FLOPs are counted; the first batch where none is given.
        kept: where a killed process left off with the scores; None keeps nothing.

    Raises:
        PruningError: too few batches, an unreachable budget, a loss that is not finite, indicators that are zero.
    """
    needed = batches_needed(recipe)
    if len(batches) < needed:
        raise PruningError(
            f"{len(batches)} batches to score on",
            expected=f"{needed} or more",
            remedy="lower prune.score_batches and prune.reactivation_batches, or give more frames",
        )
    frame = batches[0][0] if reference is None else reference
    scores: ChannelVectors = {}
    if recipe.amount > 0:
        work = channel_work(model, batches, recipe, loss_fn, frame)
        scores = scores_of(replace(work, kept=kept or Kept())).scores
    return prune_by_scores(model, scores, recipe, frame)


def prune_by_scores(
    model: ModelT,
    scores: ChannelVectors,
    recipe: PruneRecipe,
    reference: FrameBatch,
    layer_ms: Mapping[str, float] | None = None,
    tables: Mapping[str, StageTable] | None = None,
) -> PruneResult[ModelT]:
    """Selects and removes channels by scores that `score` gave for the recipe's scope: several budgets, one scoring.

    With `layer_ms`, milliseconds of the dense model's layers, the greedy selection prunes where time is: it saves the
    most time for the lost score while the budget counts what the recipe says. With `tables`, measured milliseconds of
    stages, the budget may be "latency".

    Raises:
        PruningError: an unreachable budget, or scores of other channels.
    """
    plan = plan_pruning(model, recipe, reference, tables)
    price = None if layer_ms is None else time_costs(model, plan.flops, plan.groups, layer_ms)
    return _carried_out(plan, model, scores, price)


def _carried_out(
    plan: Plan, model: ModelT, scores: ChannelVectors, price: CostModel | None = None
) -> PruneResult[ModelT]:
    wanted = plan.recipe.amount > 0
    selection = select(plan.scoped, scores, plan.cost, plan.options, price) if wanted else keep_all(plan.scoped)
    smaller = shrink(model, plan.groups, selection.keep)
    before = {group.name: group.width for group in plan.groups}
    result = PruneResult(
        model=smaller,
        groups=plan.groups,
        keep=selection.keep,
        scores=scores,
        widths_before=before,
        widths_after=before | dict(selection.widths),
        flops_before=plan.flops,
        flops_after=count_flops(smaller, plan.frame),
        params_before=sum(p.numel() for p in model.parameters()),
        params_after=sum(p.numel() for p in smaller.parameters()),
        budget=plan.recipe.budget,
        asked=selection.asked,
        got=selection.got,
    )
    say(_summary(result))
    return result


def _summary(result: PruneResult[ModelT]) -> str:
    before, after = result.flops_before.total() / 1e9, result.flops_after.total() / 1e9
    return (
        f"pruned {result.got:.1%} of the {result.budget} (asked {result.asked:.1%}): "
        f"{before:.2f} -> {after:.2f} GFLOPs, "
        f"{result.params_before / 1e6:.2f} -> {result.params_after / 1e6:.2f} M parameters"
    )
