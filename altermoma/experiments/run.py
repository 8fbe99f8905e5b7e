"""Runs an experiment's cells, each once: what is done is kept, what was cut off goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altermoma.errors import StorageError
from altermoma.experiments.cells import Cell, cells_of
from altermoma.experiments.recipe import ExperimentRecipe
from altermoma.experiments.workbench import Workbench
from altermoma.progress import say
from altermoma.storage import check_writable, content_key, read_json, write_json
from altermoma.workflow.runs import lock

CELLS = "cells"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is there of an experiment.

    Attributes:
        recipe: what was asked.
        rows: labels, in the order of the cells.
        dense: mAP, NDS and loss of the dense model.
        records: of the cells that are done (`Workbench.run`).
        missing: label, amount and seed of those that are not.
    """

    recipe: ExperimentRecipe
    rows: Sequence[str]
    dense: Mapping[str, float]
    records: Sequence[Mapping[str, Any]]
    missing: Sequence[tuple[str, float, int]]


def run_experiment(recipe: ExperimentRecipe, folder: Path, *, minutes: float = 0.0, only_read: bool = False) -> Outcome:
    """Runs the cells that are missing, in order, and returns all that are done.

    Args:
        recipe: the experiment.
        folder: cells, scores and unfinished training; several experiments may share one.
        minutes: no cell is begun after so many; 0 sets no limit.
        only_read: begin none.

    Raises:
        StorageError: another process works in the folder.
    """
    with contextlib.ExitStack() as stack:
        check_writable(folder / CELLS)
        if not lock(folder, stack):
            raise StorageError(
                f"another process runs experiments in {folder}", expected="one at a time", remedy="wait for it"
            )
        return _run(Workbench(recipe, folder), minutes=minutes, only_read=only_read)


def _run(bench: Workbench, *, minutes: float, only_read: bool) -> Outcome:
    recipe, folder = bench.recipe, bench.folder
    started = time.monotonic()
    cells = list(cells_of(recipe, bench.place.recipe.prune))
    dense = _dense(bench, folder)
    records: list[Mapping[str, Any]] = []
    missing: list[tuple[str, float, int]] = []
    for number, cell in enumerate(cells, start=1):
        file = folder / CELLS / f"{cell.key(bench.ground)}.json"
        late = only_read or (minutes > 0 and time.monotonic() - started > 60 * minutes)
        if not file.is_file() and late:
            missing.append((cell.label, cell.amount, cell.seed))
            continue
        if not file.is_file():
            say(f"cell {number} of {len(cells)}: {describe(cell)}")
            write_json(file, bench.run(cell))
        found = {**read_json(file), "label": cell.label}
        say(f"{describe(cell)}: mAP {100 * found['mAP']:.1f}, NDS {100 * found['NDS']:.1f}")
        records.append(found)
    rows = tuple(dict.fromkeys(cell.label for cell in cells))
    return Outcome(recipe=recipe, rows=rows, dense=dense, records=records, missing=missing)


def describe(cell: Cell) -> str:
    return f"{cell.label} {100 * cell.amount:g} %, seed {cell.seed}"


def _dense(bench: Workbench, folder: Path) -> Mapping[str, float]:
    file = folder / CELLS / f"dense-{content_key(bench.ground)}.json"
    if not file.is_file():
        say("the dense model")
        write_json(file, {"loss": bench.loss(bench.dense), **bench.accuracy(bench.dense)})
    found: Mapping[str, float] = read_json(file)
    return found
