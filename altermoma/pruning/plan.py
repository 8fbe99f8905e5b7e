"""What is known before anything is scored: channel groups, what they cost, and whether the budget can be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.pruning.channels import ChannelGroup, select_groups
from altermoma.pruning.costs import CostModel, channel_costs
from altermoma.pruning.flops import FlopReport, count_flops, flop_costs, parameter_costs
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.latency import StageTable, stage_latency
from altermoma.pruning.selection import SelectionOptions, check_budget
from altermoma.recipe import PruneRecipe


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
    if recipe.budget == "weights":
        raise PruningError(
            'prune.budget = "weights" for channels',
            expected="flops, channels, params or latency",
            remedy='altermoma prune --prune-weights does it; experiments do with granularity = "weights"',
        )
    if recipe.threshold != "global":
        raise PruningError(
            f"prune.threshold = {recipe.threshold!r} for channels",
            expected='"global": their budget is one for all, and each stage keeps prune.min_channels',
            remedy="leave it out; it is for --prune-weights and experiments in single weights",
        )
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
