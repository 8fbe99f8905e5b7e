"""Stage tables against numpy's interpolation, and the latency budget against a sum over stages taken by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fusion_toys import BASIC, frame_batch, fusion_model

from altermoma.errors import PruningError
from altermoma.pruning.flops import count_flops, flop_costs
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.latency import StageTable, stage_latency
from altermoma.pruning.plan import plan_pruning
from altermoma.pruning.prune import prune_by_scores
from altermoma.pruning.surgery import shrink
from altermoma.recipe import PruneRecipe

STAGES = ("camera", "view", "lidar", "fusion", "head")
FIXED = {"camera": 2.0, "view": 1.5, "lidar": 9.0, "fusion": 1.0, "head": 4.0}
SCALED = {"camera": 8.0, "view": 0.2, "lidar": 3.0, "fusion": 9.0, "head": 2.0}


def tables() -> dict[str, StageTable]:
    """A fixed time and one in proportion to the FLOPs: lines through two points."""
    return {s: StageTable.measured([(1.0, FIXED[s] + SCALED[s]), (0.4, FIXED[s] + 0.4 * SCALED[s])]) for s in STAGES}


def test_tables_interpolate_and_are_levelled() -> None:
    table = StageTable.measured([(1.0, 10.0), (0.25, 4.0), (0.5, 3.0)])
    assert table.shares == (0.25, 0.5, 1.0)
    assert table.ms == (4.0, 4.0, 10.0), "half of the work cannot take less than a quarter"
    for share in np.linspace(0.25, 1.0, 9):
        assert table.at(share) == pytest.approx(float(np.interp(share, [0.25, 0.5, 1.0], [4.0, 4.0, 10.0])))
    line = StageTable.measured([(0.5, 3.0), (1.0, 5.0)])
    assert line.at(0.25) == pytest.approx(2.0)
    assert StageTable.measured([(0.5, 1.0), (1.0, 5.0)]).at(0.1) == 0.0


@pytest.mark.parametrize("points", [[(1.0, 3.0)], [(1.0, 3.0), (1.0, 4.0)], [(0.5, 0.0), (1.0, 0.0)]])
def test_tables_that_say_nothing_are_errors(points: list[tuple[float, float]]) -> None:
    with pytest.raises(PruningError, match="latency table"):
        StageTable.measured(points)


def test_cost_is_the_sum_of_the_stages() -> None:
    """Against FLOPs counted by running the shrunk model."""
    model, frame = fusion_model(BASIC), frame_batch(BASIC.geometry)
    groups = fusion_groups(model)
    report = count_flops(model, frame)
    cost = stage_latency(model, report, groups, tables())
    assert cost.dense == pytest.approx(sum(FIXED.values()) + sum(SCALED.values()))
    widths = {group.name: max(2, group.width - 1 - index % 7) for index, group in enumerate(groups)}
    smaller = shrink(model, groups, {name: torch.arange(width) for name, width in widths.items()})
    left, dense = count_flops(smaller, frame).by_stage(), report.by_stage()
    expected = sum(FIXED[s] + SCALED[s] * left[s] / dense[s] for s in STAGES)
    assert cost.total(widths) == pytest.approx(expected, rel=1e-9)
    group = groups[3].name
    narrower = {**widths, group: 2}
    assert cost.saving(widths, group, 2) == pytest.approx(cost.total(widths) - cost.total(narrower), rel=1e-9)


def test_a_latency_budget_prunes_where_time_is() -> None:
    """All else equal, a stage whose time hardly depends on its channels keeps more of them than by FLOPs."""
    model, frame = fusion_model(BASIC), frame_batch(BASIC.geometry)
    torch.manual_seed(1)
    scores = {group.name: torch.rand(group.width, dtype=torch.float64) for group in fusion_groups(model)}
    recipe = PruneRecipe(amount=0.25, channel_step=4, lidar_channel_step=4, min_channels=4, selection="greedy")
    by_flops = prune_by_scores(model, scores, recipe, frame)
    timed = dataclasses.replace(recipe, budget="latency")
    by_time = prune_by_scores(model, scores, timed, frame, tables=tables())
    assert by_time.got == pytest.approx(0.25, abs=0.02)
    flops, time = (count_flops(found.model, frame).by_stage() for found in (by_flops, by_time))
    assert time["lidar"] / time["fusion"] > 1.1 * flops["lidar"] / flops["fusion"]


def test_what_is_missing_is_said() -> None:
    model, frame = fusion_model(BASIC), frame_batch(BASIC.geometry)
    recipe = PruneRecipe(amount=0.2, channel_step=4, lidar_channel_step=4, budget="latency")
    with pytest.raises(PruningError, match="without measured latencies"):
        plan_pruning(model, recipe, frame)
    some = {name: table for name, table in tables().items() if name != "lidar"}
    with pytest.raises(PruningError, match="no latency table of stage lidar"):
        plan_pruning(model, recipe, frame, some)
    assert flop_costs(model, count_flops(model, frame), fusion_groups(model)).touches(fusion_groups(model)[0].name)
