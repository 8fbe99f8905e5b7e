"""What the plots of a table run over: the amount, a key that variants differ in, or the rows one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import pytest

from altermoma.errors import RecipeError
from altermoma.experiments.page import table_page
from altermoma.experiments.plot import dot_plot
from altermoma.experiments.recipe import ExperimentRecipe, Variant, load_experiment
from altermoma.experiments.run import Outcome
from altermoma.experiments.table import tabulate

BETAS = (2.0, 0.0, 0.5)
FIGURE_4 = ExperimentRecipe(
    title="F",
    amounts=(0.8,),
    methods=("altermoma",),
    seeds=1,
    over="beta",
    variants=(*(Variant(name=f"b {beta:g}", line="rounds", beta=beta) for beta in BETAS), Variant(name="apart")),
)


def outcome(recipe: ExperimentRecipe) -> Outcome:
    records: Sequence[Mapping[str, Any]] = [
        {"label": v.name, "method": "altermoma", "amount": 0.8, "seed": 0, "mAP": 0.5 - 0.1 * v.beta}
        | {"NDS": 0.4, "loss_cut": 2.0 + v.beta, "seconds": 9.0, "scoring_seconds": 3.0}
        for v in recipe.variants
    ]
    rows = [variant.name for variant in recipe.variants]
    dense = {"mAP": 0.6, "NDS": 0.5, "loss": 1.0}
    return Outcome(recipe=recipe, rows=rows, dense=dense, records=records, missing=[])


def drawings(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>") for part in html.split("<svg")[1:]]


def points(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]


def test_a_line_runs_over_the_key_that_variants_differ_in() -> None:
    accuracy, loss = drawings(table_page(tabulate(outcome(FIGURE_4))))
    (falling,), (rising,) = accuracy.iter("polyline"), loss.iter("polyline")
    across = [x for x, _ in points(falling)]
    assert across == sorted(across)
    assert across == [x for x, _ in points(rising)]
    assert (across[1] - across[0]) / (across[2] - across[0]) == pytest.approx(0.25, abs=0.01), "0, 0.5 and 2"
    assert [y for _, y in points(falling)] == sorted(y for _, y in points(falling)), "down the page"
    assert "beta, 80 % removed" in [text.text for text in accuracy.iter("text")]
    assert "apart" not in [text.text for text in accuracy.iter("text")], "a variant of no line is in the table alone"


def test_one_amount_is_a_dot_for_each_row() -> None:
    variants = tuple(dataclasses.replace(v, line="") for v in FIGURE_4.variants)
    (accuracy, _) = drawings(table_page(tabulate(outcome(dataclasses.replace(FIGURE_4, over="", variants=variants)))))
    places = [float(dot.attrib["cx"]) for dot in accuracy.iter("circle")]
    assert len(places) == 4
    low, high, middle, apart = places
    assert (middle - low) / (high - low) == pytest.approx(0.75, abs=0.01), "30, 50 and 45 points"
    assert low < apart < middle, "beta = 1 stands for itself: 40 points"


def test_bars_of_a_dot_plot_are_a_deviation_to_either_side() -> None:
    drawn = ElementTree.fromstring(dot_plot({"a": (50.0, 2.0), "b": (46.0, 0.0)}, "x", ("dense", 60.0)))
    first, second = (float(dot.attrib["cx"]) for dot in drawn.iter("circle"))
    bar, none = (line for line in drawn.iter("line") if "stroke" in line.attrib)
    unit = (first - second) / 4.0
    assert float(bar.attrib["x2"]) - first == pytest.approx(2 * unit, abs=0.1)
    assert first - float(bar.attrib["x1"]) == pytest.approx(2 * unit, abs=0.1)
    assert none.attrib["x1"] == none.attrib["x2"]
    (level,) = (line for line in drawn.iter("line") if line.attrib.get("class") == "level")
    assert float(level.attrib["x1"]) == pytest.approx(first + 10 * unit, abs=0.2)
    assert dot_plot({}, "x", ("dense", 1.0)) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"over": ""},
        {"variants": (Variant(name="a"), Variant(name="b", beta=0.0))},
        {"amounts": (0.8, 0.9)},
    ],
)
def test_lines_without_a_key_and_keys_without_lines_are_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="over"):
        dataclasses.replace(FIGURE_4, **changes)


def test_a_part_of_a_figure_needs_no_line() -> None:
    few = dataclasses.replace(FIGURE_4, variants=FIGURE_4.variants[::-1]).as_reduced()
    assert [variant.name for variant in few.variants] == ["apart"]
    assert few.over == ""


def test_the_papers_figure_4_is_drawn_over_its_ratios() -> None:
    recipe = load_experiment("fig4")
    lines = tabulate(outcome(recipe)).lines
    assert {tuple(x for _, x in line) for line in lines.values()} == {(0.0, 0.25, 0.5, 1.0, 2.0)}
