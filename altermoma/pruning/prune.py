"""Structured AlterMOMA from end to end: scores, selection, surgery, and the record of what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import nn

from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.progress import say
from altermoma.pruning.altereva import AlterEvaOptions, Indicators, altereva, measure_terms
from altermoma.pruning.channels import ChannelGroup, ChannelVectors, Keep, select_groups
from altermoma.pruning.costs import CostModel, channel_costs
from altermoma.pruning.flops import FlopReport, count_flops, flop_costs, parameter_costs, time_costs
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.indicators import ChannelTerms, ScoringData, Terms
from altermoma.pruning.kept import Kept
from altermoma.pruning.latency import StageTable, stage_latency
from altermoma.pruning.masking import Batch, LossFunction
from altermoma.pruning.selection import SelectionOptions, check_budget, keep_all, select
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
    from altermoma.pruning.methods.choose import scores_of
    from altermoma.pruning.methods.work import channel_work

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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known before anything is scored."""

    recipe: PruneRecipe
    frame: FrameBatch
    groups: tuple[ChannelGroup, ...]
    scoped: tuple[ChannelGroup, ...]
    flops: FlopReport
    cost: CostModel
    options: SelectionOptions

    def with_amount(self, amount: float) -> SelectionOptions:
        """The options with another share to remove."""
        return replace(self.options, amount=amount)


def plan_pruning(
    model: nn.Module, recipe: PruneRecipe, frame: FrameBatch, tables: Mapping[str, StageTable] | None = None
) -> Plan:
    """Groups and costs; a budget that cannot be met is an error here, before the scores are computed."""
    if recipe.channel_step < 1:
        raise PruningError("prune.channel_step = 0", expected="1 or more; 0 is for the target to fill in")
    groups = fusion_groups(model)
    scoped = select_groups(groups, recipe.scope)
    flops = count_flops(model, frame)
    if recipe.budget == "latency":
        cost: CostModel = _latency(model, groups, flops, tables)
    else:
        cost = _cost(model, groups, scoped, recipe, flops)
    options = SelectionOptions(
        amount=recipe.amount,
        step=recipe.channel_step,
        lidar_step=recipe.lidar_channel_step or None,
        floor=recipe.min_channels,
        method=recipe.selection,
    )
    check_budget(scoped, cost, options)
    return Plan(recipe=recipe, frame=frame, groups=groups, scoped=scoped, flops=flops, cost=cost, options=options)


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


def batches_needed(recipe: PruneRecipe) -> int:
    """Batches that `prune` takes.

    Raises:
        PruningError: a recipe that leaves them open.
    """
    for key in ("score_batches", "reactivation_batches", "reri_batches"):
        if getattr(recipe, key) < 1:
            raise PruningError(f"prune.{key} = 0", expected="1 or more; 0 is for the size of the model to fill in")
    return max(recipe.score_batches, recipe.reactivation_batches)


def passes_of(recipe: PruneRecipe) -> int:
    """Forward and backward passes of AlterMOMA's scoring of all partitions; those with a branch masked are cheaper.

    With two batches for DeCI and one for ReRI they are 2 B + 4 for B reactivation batches; every further round measures
    DeCI once more.
    """
    terms = min(recipe.reri_batches, recipe.reactivation_batches)
    masked = recipe.reactivation_batches + 2 * terms - 1
    return recipe.score_rounds * recipe.score_batches * bool(recipe.alpha) + 2 * masked * bool(recipe.beta)


def score(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    kept: Kept | None = None,
) -> ChannelVectors:
    """AlterEva scores of the groups at the model's weights as they are: of one round (`methods.altermoma` has more)."""
    return score_terms(model, ChannelTerms(model, groups, recipe.aggregation), batches, recipe, loss_fn, kept)


def score_terms(
    model: nn.Module,
    terms: Terms,
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    kept: Kept | None = None,
) -> ChannelVectors:
    """AlterEva scores of one round, of channels or single elements, as the terms say."""
    indicators = indicators_of(model, terms, batches, recipe, loss_fn, kept)
    return altereva(terms.groups, indicators, altereva_options(recipe))


def altereva_options(recipe: PruneRecipe) -> AlterEvaOptions:
    """The recipe's weights, as `altereva` takes them."""
    return AlterEvaOptions(
        alpha=recipe.alpha,
        beta=recipe.beta,
        lr=recipe.reactivation_lr,
        aggregation=recipe.aggregation,
        redundancy=recipe.redundancy,
        unit=recipe.unit,
    )


def indicators_of(
    model: nn.Module,
    terms: Terms,
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    kept: Kept | None = None,
) -> Indicators:
    """DeCI and ReRI of channels or single elements, on as many of the batches as the recipe says."""
    reactivation = batches[: recipe.reactivation_batches]
    return measure_terms(
        model,
        terms,
        loss_fn,
        batches[: recipe.score_batches],
        ScoringData(
            reactivation=reactivation,
            terms=reactivation[: recipe.reri_batches],
            starts_together=True,
            kept=kept or Kept(),
            norms=recipe.norms,
        ),
        altereva_options(recipe),
    )


def _cost(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    scoped: Sequence[ChannelGroup],
    recipe: PruneRecipe,
    flops: FlopReport,
) -> CostModel:
    """FLOPs and parameters count over the whole model, channels over the scope."""
    if recipe.budget == "flops":
        return flop_costs(model, flops, groups)
    if recipe.budget == "params":
        return parameter_costs(model, groups)
    return channel_costs(scoped)


def _latency(
    model: nn.Module, groups: Sequence[ChannelGroup], flops: FlopReport, tables: Mapping[str, StageTable] | None
) -> CostModel:
    if tables is None:
        raise PruningError(
            "a budget in latency without measured latencies",
            expected="a table per stage",
            remedy="altermoma prune and altermoma-export measure them; else give what stage_times.measure_tables finds",
        )
    return stage_latency(model, flops, groups, tables)


def _summary(result: PruneResult[ModelT]) -> str:
    before, after = result.flops_before.total() / 1e9, result.flops_after.total() / 1e9
    return (
        f"pruned {result.got:.1%} of the {result.budget} (asked {result.asked:.1%}): "
        f"{before:.2f} -> {after:.2f} GFLOPs, "
        f"{result.params_before / 1e6:.2f} -> {result.params_after / 1e6:.2f} M parameters"
    )
