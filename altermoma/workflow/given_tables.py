"""Milliseconds that were measured on another machine, in place of this one's: `[prune] latency_tables`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from altermoma.deploy.benchmark import conditions
from altermoma.deploy.stage_tables import MeasuredTables, Served, StageTimes
from altermoma.deploy.targets import load_target
from altermoma.errors import PruningError, RecipeError
from altermoma.recipe import PruneRecipe, Recipe
from altermoma.storage import sha256_of

if TYPE_CHECKING:
    from altermoma.models.batch import FrameBatch
    from altermoma.models.fusion import FusionModel
    from altermoma.pruning.flops import FlopReport
    from altermoma.pruning.latency import StageTable

TABLES = "latency_tables"
"""In keys of content: the tables' digest."""
LATENCY = "latency"
"""In the record of a pruning: what its milliseconds are."""

_AGAIN = "write and measure tables of this recipe: altermoma tables write, altermoma tables measure"


def served_by(recipe: Recipe) -> Served:
    """The engines that a recipe makes."""
    engine = recipe.engine
    return Served(precision=engine.precision, sparsity=engine.sparsity, target=load_target(engine.target).name)


def check_tables(recipe: Recipe) -> None:
    """Says before any work that the tables which a recipe names are not for what it makes.

    Raises:
        RecipeError: tables of another model, or of engines of another precision, sparsity or target; or tables that
            nothing counts.
        StorageError: no such file, or not one of tables.
    """
    path = recipe.prune.latency_tables
    if not path:
        return
    if recipe.prune.budget != "latency":
        raise RecipeError(
            f"prune.latency_tables with a budget in {recipe.prune.budget}",
            expected='budget = "latency", which counts their milliseconds',
            remedy='set budget = "latency" under [prune] and give no --prune-... option, or leave latency_tables out',
        )
    measured, asked = _of_model(recipe), served_by(recipe)
    if measured.served != asked:
        raise RecipeError(
            f"{path} is for {measured.served}, while [engine] asks for {asked}",
            expected="milliseconds of the engines that the pruned model becomes",
            remedy=f"set precision, sparsity and target under [engine] to theirs, or {_AGAIN}",
        )


def _of_model(recipe: Recipe) -> MeasuredTables:
    path = recipe.prune.latency_tables
    measured = MeasuredTables.read(Path(path))
    if measured.model != recipe.model:
        raise RecipeError(f"{path} is of model {measured.model}", expected=recipe.model, remedy=_AGAIN)
    return measured


def tables_inputs(recipe: PruneRecipe) -> dict[str, str]:
    """What given tables are, for keys of content, wherever they lie; empty without any."""
    if not recipe.latency_tables:
        return {}
    path = Path(recipe.latency_tables)
    MeasuredTables.read(path)
    return {TABLES: sha256_of(path)}


def given_tables(recipe: Recipe, model: FusionModel, reference: FrameBatch) -> dict[str, StageTable]:
    """The tables that a recipe names, held against the model.

    Args:
        recipe: whose `prune.latency_tables` is set.
        model: the dense model.
        reference: the frame that its FLOPs are counted on.

    Raises:
        RecipeError: tables of another model.
        PruningError: the stages have other FLOPs than those that were measured.
    """
    from altermoma.pruning.flops import count_flops

    path = recipe.prune.latency_tables
    measured, dense = _of_model(recipe), count_flops(model, reference).by_stage()
    if measured.flops.keys() != dense.keys() or measured.stages.keys() != dense.keys():
        raise PruningError(f"{path} has stages {', '.join(measured.stages)}", expected=", ".join(dense), remedy=_AGAIN)
    for stage, flops in dense.items():
        if not math.isclose(measured.flops[stage], flops, rel_tol=1e-6):
            raise PruningError(
                f"stage {stage} has {flops / 1e9:.4f} GFLOPs, and had {measured.flops[stage] / 1e9:.4f} in {path}",
                expected="tables of this very model on this reference frame, the first of data.val_split",
                remedy="write the tables with the checkpoint and the data that are pruned with: altermoma tables write",
            )
    return {stage: _table(times) for stage, times in measured.stages.items()}


def _table(times: StageTimes) -> StageTable:
    """Widths that come to the same share count as one."""
    from altermoma.pruning.latency import StageTable

    found: dict[float, list[float]] = {}
    for share, ms in zip(times.shares, times.ms, strict=True):
        found.setdefault(share, []).append(ms)
    points = [(share, median(ms)) for share, ms in found.items()]
    # No step of the widths makes the stage smaller, nor faster.
    return StageTable.measured(points if len(points) > 1 else [(0.0, points[0][1]), *points])


def latency_record(
    recipe: Recipe, tables: Mapping[str, StageTable], before: FlopReport, after: FlopReport
) -> dict[str, Any]:
    """JSON-able: where the milliseconds come from, and what they are by stage by the tables, before and after."""
    dense, left = before.by_stage(), after.by_stage()
    return {
        **_where(recipe),
        "ms_before": {stage: table.at(1.0) for stage, table in tables.items()},
        "ms_after": {stage: table.at(left[stage] / dense[stage]) for stage, table in tables.items()},
    }


def _where(recipe: Recipe) -> dict[str, Any]:
    if recipe.prune.latency_tables:
        measured = MeasuredTables.read(Path(recipe.prune.latency_tables))
        return {"device": measured.device, "runtime": measured.runtime, "for": str(measured.served), "here": False}
    about = conditions(1)
    runtime = f"ONNX Runtime {about['versions'].get('onnxruntime', '')}".strip()
    return {"device": about["processor"], "runtime": runtime, "for": "fp32", "here": True}


def latency_line(record: Mapping[str, Any]) -> str:
    """A pruning's record of latency, for people."""
    before, after = (sum(record[key].values()) for key in ("ms_before", "ms_after"))
    place = "this machine's processor, " if record["here"] else ""
    return (
        f"latency budget: {before:.2f} -> {after:.2f} ms over all stages by the tables, measured on {place}"
        f"{record['device']}, {record['runtime']}, {record['for']}"
    )
