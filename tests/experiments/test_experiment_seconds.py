"""What a cell is said to take, where its scores were another cell's and where it was killed on the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from altermoma.experiments import workbench
from altermoma.experiments.cells import Cell, cells_of
from altermoma.experiments.recipe import ExperimentRecipe
from altermoma.experiments.table import _known_mean
from altermoma.experiments.workbench import Pruned, Workbench
from altermoma.models.fusion import FusionModel
from altermoma.pruning.methods.choose import Scored
from altermoma.pruning.methods.scoring import Scoring
from altermoma.training.loop import TrainResult

RECIPE = ExperimentRecipe(title="T", methods=("magnitude", "imp"), amounts=(0.8, 0.9), seeds=1)
MODEL = cast(FusionModel, None)
SCORED = Scored(scores={"w": torch.ones(2)}, seconds=7.0)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """Scores take 7 seconds, the rest of a cell 3; nothing is computed."""
    clock = iter(range(0, 1000, 3))
    nothing = cast(Any, None)
    work = Scoring(model=MODEL, terms=nothing, batches=(), loss_fn=nothing, recipe=RECIPE.prune, cut=nothing)
    monkeypatch.setattr(workbench, "time", SimpleNamespace(process_time=lambda: float(next(clock))))
    monkeypatch.setattr(workbench, "scores_of", lambda _: SCORED)
    monkeypatch.setattr(workbench, "weight_work", lambda *_, **__: work)
    monkeypatch.setattr(workbench, "reference_batch", lambda _: None)
    found = Workbench(RECIPE, tmp_path)
    found.__dict__ |= {"ground": {"granularity": "weights"}, "dense": MODEL}
    monkeypatch.setattr(found, "cut", lambda *_: Pruned(model=MODEL, masks={}, removed={}))
    monkeypatch.setattr(found, "loss", lambda _: 1.0)
    monkeypatch.setattr(found, "accuracy", lambda _: {"mAP": 0.5, "NDS": 0.5})
    monkeypatch.setattr(found, "fine_tune", lambda *_: tuned(0))
    return found


def tuned(resumed_from: int) -> TrainResult:
    return TrainResult(model=MODEL, steps=100, resumed_from=resumed_from, seconds=0.0, log=Path())


def cell_of(method: str, amount: float) -> Cell:
    return next(c for c in cells_of(RECIPE, RECIPE.prune) if (c.label, c.amount) == (method, amount))


def test_scores_count_in_every_cell_that_stands_on_them(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.run(cell_of("magnitude", 0.9))
    monkeypatch.setattr(workbench, "scores_of", None)
    second = bench.run(cell_of("magnitude", 0.8))
    assert [(record["scoring_seconds"], record["seconds"]) for record in (first, second)] == [(7.0, 10.0)] * 2


def test_training_that_was_resumed_has_no_time(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "fine_tune", lambda *_: tuned(60))
    found = bench.run(cell_of("magnitude", 0.9))
    assert (found["scoring_seconds"], found["seconds"]) == (7.0, None)


def test_rounds_that_were_resumed_have_no_time(bench: Workbench) -> None:
    cell = cell_of("imp", 0.9)
    bench._rounds(cell).mkdir(parents=True)
    found = bench.run(cell)
    assert (found["scoring_seconds"], found["seconds"]) == (None, None)
    assert bench.scores(cell)[1] is None, "nor when they are read again"
    whole = bench.run(cell_of("imp", 0.8))
    assert (whole["scoring_seconds"], whole["seconds"]) == (7.0, 10.0)


def test_tables_average_what_is_known() -> None:
    records: list[dict[str, Any]] = [{"seconds": 4.0}, {"seconds": None}, {"seconds": 6.0}]
    assert _known_mean(records, "seconds") == 5.0
    assert _known_mean(records[1:2], "seconds") is None
