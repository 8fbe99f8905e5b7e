"""Statistics against scipy, cells by what decides them, tables and pages from made records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from altermoma.errors import RecipeError
from altermoma.experiments import workbench
from altermoma.experiments.cells import Cell, cells_of
from altermoma.experiments.page import table_page
from altermoma.experiments.paper import paper_figures
from altermoma.experiments.plot import Axes, bar_plot, line_plot, round_values
from altermoma.experiments.recipe import ExperimentRecipe, Variant, load_experiment, shipped
from altermoma.experiments.run import Outcome
from altermoma.experiments.statistics import paired_difference, spread
from altermoma.experiments.table import tabulate, to_json, to_markdown
from altermoma.recipe import DataRecipe, PruneRecipe, Recipe, TrainRecipe
from altermoma.workflow.single import train_model

GROUND = {"checkpoint": "abc", "granularity": "weights"}
RECIPE = ExperimentRecipe(title="T", amounts=(0.9, 0.8), methods=("altermoma", "snip"), seeds=3, paper="table1")


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(50, 3, 9), rng.normal(48, 3, 9)
    found = paired_difference(list(first), list(second))
    expected = stats.bootstrap(
        (first - second,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.interval is not None
    assert found.mean == pytest.approx(float((first - second).mean()))
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.1)


def test_few_seeds_have_no_interval() -> None:
    assert paired_difference([1.0, 2.0], [0.0, 0.0]).interval is None
    assert spread([4.0]).deviation is None
    assert spread([1.0, 3.0]).deviation == pytest.approx(2**0.5)


def cells(recipe: ExperimentRecipe, prune: PruneRecipe | None = None) -> list[Cell]:
    return list(cells_of(recipe, prune or recipe.prune))


def test_cells_come_seed_by_seed_and_are_paired() -> None:
    found = cells(RECIPE)
    assert [(c.label, c.amount, c.seed) for c in found[:5]] == [
        ("altermoma", 0.9, 0),
        ("snip", 0.9, 0),
        ("altermoma", 0.8, 0),
        ("snip", 0.8, 0),
        ("altermoma", 0.9, 1),
    ]
    assert len({cell.key(GROUND) for cell in found}) == 12
    for cell in found:
        assert cell.finetune.seed == cell.seed, "all methods see the same frames in the same order"


def test_variants_are_rows_of_altermoma_alone() -> None:
    variants = Variant(name="no redundancy", beta=0.0), Variant(name="more steps", reactivation_batches=32)
    prune = dataclasses.replace(RECIPE.prune, reactivation_batches=16)
    recipe = dataclasses.replace(RECIPE, variants=variants, seeds=1, amounts=(0.9,))
    assert [(c.label, c.prune.beta, c.prune.reactivation_batches) for c in cells(recipe, prune)] == [
        ("no redundancy", 0.0, 16),
        ("more steps", 1.0, 32),
        ("snip", RECIPE.prune.beta, 16),
    ]


def test_a_key_changes_with_what_decides_the_cell_and_with_nothing_else() -> None:
    before = {c.label: c for c in cells(dataclasses.replace(RECIPE, seeds=1, amounts=(0.9,)))}

    def keys(label: str, **changes: Any) -> tuple[bool, bool]:
        cell = before[label]
        changed = dataclasses.replace(cell, prune=dataclasses.replace(cell.prune, **changes))
        return (
            changed.key(GROUND) != cell.key(GROUND),
            changed.scoring_key(GROUND) != cell.scoring_key(GROUND),
        )

    assert keys("altermoma", beta=0.5) == (True, True)
    assert keys("snip", beta=0.5) == (False, False)
    assert keys("snip", prospr_lr=0.5) == (False, False)
    assert keys("snip", norms="running") == keys("altermoma", norms="running") == (True, True)
    assert keys("altermoma", norms="batch", score_rounds=4) == (False, False)
    assert keys("altermoma", score_rounds=8) == (True, True)
    assert keys("snip", score_rounds=8) == (False, False)
    assert keys("snip", amount=0.8) == (True, False), "one scoring serves all amounts"
    assert keys("snip", method="synflow", amount=0.8)[1]
    assert keys("snip", channel_step=32) == (False, False), "single weights have no channel step"
    other = before["snip"].key({**GROUND, "checkpoint": "another"})
    assert other != before["snip"].key(GROUND)
    rounds = dataclasses.replace(before["snip"].prune, method="synflow")
    at = [Cell(label="", prune=dataclasses.replace(rounds, amount=a), finetune=RECIPE.finetune) for a in (0.8, 0.9)]
    assert at[0].scoring_key(GROUND) != at[1].scoring_key(GROUND), "rounds of SynFlow end at the amount"
    apart = {**GROUND, "threshold": "partition"}
    assert at[0]._asked(apart) != at[0]._asked(GROUND), "and cut by the threshold"
    assert before["snip"]._asked(apart) == before["snip"]._asked(GROUND)


def test_keys_change_with_what_the_model_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell, *_) = cells(RECIPE)
    masked = dataclasses.replace(cell, finetune=dataclasses.replace(cell.finetune, masked="camera"))
    assert masked.key(GROUND) != cell.key(GROUND)
    monkeypatch.setattr(workbench, "data_key", lambda *_: "tables")
    asked = DataRecipe(), DataRecipe(repeat_key=True), DataRecipe(map_masks="m")
    every = [dataclasses.replace(RECIPE, data=dataclasses.replace(data, root=str(tmp_path))) for data in asked]
    plain, repeated, maps = (workbench.Workbench(recipe, tmp_path).ground["data"] for recipe in every)
    assert set(plain) == {"version", "train_split", "val_split", "sweeps"}, "cells from before are known by the same"
    assert repeated == {**plain, "repeat_key": True}
    assert maps == {**plain, "map_masks": "m"}


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_experiment(name)
    assert recipe.base().finetune.distill_weight == 0.0, "all methods are fine-tuned by labels alone"
    if recipe.paper:
        assert paper_figures(recipe.paper).methods
    reduced = recipe.as_reduced()
    assert len(cells(reduced)) <= 2


def test_paper_figures_are_the_papers() -> None:
    table = paper_figures("table1")
    assert (table.dense, table.methods["altermoma"][0.9], table.methods["imp"][0.8]) == (67.8, 63.5, 59.3)
    assert paper_figures("table5").methods["prospr"][0.5] == 62.5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("amounts = [1.0]", "amounts holds 1"),
        ("amounts = [0.0]", "amounts holds 0"),
        ("amounts = []", "an experiment of 0 amounts"),
        ("seeds = 0", "0 seeds"),
        ("methods = ['magic']", "methods"),
        ("amonuts = [0.5]", "unknown recipe key amonuts"),
        ("[finetune]\ndistill_weight = 0.5", "distill_weight = 0.5 in an experiment"),
        ("[prune]\nprospr_lr = -1.0", "prune.prospr_lr = -1.0"),
    ],
)
def test_what_cannot_be_meant_is_an_error(text: str, found: str, tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(f'title = "T"\n{text}\n')
    with pytest.raises(RecipeError, match=found):
        load_experiment(str(file))


def test_a_teacher_without_weight_is_an_error(tmp_path: Path) -> None:
    recipe = Recipe(finetune=TrainRecipe(distill_weight=0.0))
    with pytest.raises(RecipeError, match=r"--teacher with finetune\.distill_weight = 0"):
        train_model(recipe, tmp_path, teacher=tmp_path / "dense.safetensors")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="no experiment 'table99'") as caught:
        load_experiment("table99")
    assert "table5" in caught.value.expected


def record(label: str, amount: float, seed: int, accuracy: float) -> Mapping[str, Any]:
    figures = {"loss_cut": 3.0, "seconds": 100.0, "scoring_seconds": 10.0, "NDS": accuracy}
    return {"label": label, "method": label, "amount": amount, "seed": seed, "mAP": accuracy, **figures}


def outcome() -> Outcome:
    records = [record("altermoma", 0.9, seed, 0.5 + 0.01 * seed) for seed in range(3)]
    records += [record("snip", 0.9, seed, 0.4 + 0.02 * seed) for seed in range(3)]
    return Outcome(
        recipe=RECIPE,
        rows=("altermoma", "snip"),
        dense={"mAP": 0.8, "NDS": 0.7, "loss": 1.0},
        records=records,
        missing=[("altermoma", 0.8, 0)],
    )


def test_the_table_pairs_seeds_and_says_what_is_missing() -> None:
    table = tabulate(outcome())
    snip = table.entries["snip", 0.9]
    assert snip.mAP.mean == pytest.approx(42.0)
    assert snip.mAP.deviation == pytest.approx(2.0)
    assert snip.difference is not None
    assert snip.difference.mean == pytest.approx(-9.0)
    assert snip.paper == pytest.approx(50.2 - 67.8)
    assert table.entries["altermoma", 0.9].difference is None
    text = to_markdown(table)
    assert "42.0 \N{PLUS-MINUS SIGN} 2.0 (3)" in text
    assert "Missing: 1 cells, first altermoma at 80 % with seed 0" in text
    assert json.loads(json.dumps(to_json(table)))["cells"][1]["difference"] == pytest.approx(-9.0)


def test_only_the_papers_weights_stand_beside_its_figures() -> None:
    variants = Variant(name="as printed"), Variant(name="no redundancy", beta=0.0)
    recipe = dataclasses.replace(RECIPE, variants=variants)
    records = [{**record("altermoma", 0.9, 0, 0.5), "label": variant.name} for variant in variants]
    found = dataclasses.replace(outcome(), recipe=recipe, rows=[v.name for v in variants], records=records, missing=[])
    table = tabulate(found)
    assert table.entries["as printed", 0.9].paper == pytest.approx(63.5 - 67.8)
    assert table.entries["no redundancy", 0.9].paper is None
    assert table.begun == (0.9,)


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ((0.0, 20.7), [0.0, 5.0, 10.0, 15.0, 20.0]),
        ((-4.07, 1.87), [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0]),
        ((68.9, 82.3), [70.0, 72.0, 74.0, 76.0, 78.0, 80.0, 82.0]),
        ((0.45, 0.55), [0.46, 0.48, 0.5, 0.52, 0.54]),
    ],
)
def test_axes_are_marked_at_round_values(ends: tuple[float, float], found: list[float]) -> None:
    assert round_values(*ends) == found


@pytest.mark.parametrize(("layers", "named"), [(24, 24), (25, 13), (70, 24)])
def test_names_below_a_plot_leave_room(layers: int, named: int) -> None:
    numbers = [float(number) for number in range(layers)]
    drawn = line_plot({"a": [(x, x) for x in numbers]}, Axes(x="x", y="y", marks=numbers))
    assert drawn.count('text-anchor="middle"') == named + 2, "and those of the axes"
    assert bar_plot({f"{x:g}": {"a": x} for x in numbers}, "y").count('text-anchor="middle"') == named + 1


def test_pages_and_plots_are_well_formed() -> None:
    html = table_page(tabulate(outcome()))
    for part in html.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
    assert html.count("<svg") == 2
    assert "<script" not in html
    assert "http" not in html
    assert line_plot({}, Axes(x="x", y="y", marks=[0.0, 1.0])) == ""
    drawn = ElementTree.fromstring(bar_plot({"a": {"one": 1.0, "two": -1.0}}, "y"))
    heights = [float(rect.attrib["height"]) for rect in drawn.iter("rect")]
    assert heights[0] == pytest.approx(heights[1])
