"""Accuracy over measured time, from made records; timed cells, and what they are known by."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from altermoma.errors import RecipeError
from altermoma.experiments import workbench
from altermoma.experiments.cells import cells_of
from altermoma.experiments.front import front_html, front_json, front_markdown, front_of
from altermoma.experiments.recipe import ExperimentRecipe, load_experiment
from altermoma.experiments.run import Outcome
from altermoma.experiments.workbench import Workbench
from altermoma.workflow import stage_times
from altermoma.workflow.stage_times import TimedStage, least_ms


def record(label: str, amount: float, seed: int, time: float, accuracy: float) -> dict[str, Any]:
    """A dense model of 10 ms in two stages."""
    flops = {"flops_before": {"total": 100.0}, "flops_after": {"total": 100.0 * (1 - amount)}}
    times = {"dense": {"camera": 6.0, "head": 4.0}, "cut": {"camera": 10 * time - 4.0, "head": 4.0}}
    figures = {"loss_cut": 2.0, "mAP": accuracy, "NDS": accuracy, "removed": flops, "stage_ms": times}
    return {"label": label, "method": "altermoma", "amount": amount, "seed": seed, **figures}


def outcome() -> Outcome:
    records = [record("threshold", 0.2, seed, 0.9, 0.78 + 0.02 * seed) for seed in (0, 1)]
    records += [record("threshold", 0.5, 0, 0.7, 0.69), record("time", 0.2, 0, 0.8, 0.79)]
    return Outcome(
        recipe=load_experiment("front"),
        rows=("threshold", "time"),
        dense={"mAP": 0.81, "NDS": 0.7, "loss": 1.0},
        records=records,
        missing=[],
    )


def test_rows_are_compared_where_they_take_the_same_time() -> None:
    front = front_of(outcome())
    assert front is not None
    assert front.dense_ms == pytest.approx(10.0)
    first = front.rows["threshold"][0]
    assert (first.amount, first.seeds) == (0.2, 2)
    assert first.flops == pytest.approx(0.8)
    assert first.time == pytest.approx(0.9)
    assert first.mAP == pytest.approx(79.0)
    assert front.at("threshold", 0.8) == pytest.approx(79.0 - (79.0 - 69.0) / 2)
    assert front.at("time", 0.9) == pytest.approx(80.0), "half way from the dense model"
    assert front.at("time", 0.75) is None, "beyond the fastest"
    text = front_markdown(front)
    assert "| mAP at a time of | 0.9 | 0.85 | 0.8 |" in text
    assert "| threshold | 79.0 | 76.5 | 74.0 |" in text
    assert "| time | 20 % | 0.80 | 0.80 | 2.00 | 79.0 | 1 |" in text
    assert json.loads(json.dumps(front_json(front)))["rows"]["time"][0]["time"] == pytest.approx(0.8)


def test_the_plot_goes_from_the_fastest_to_the_dense_model() -> None:
    front = front_of(outcome())
    assert front is not None
    html = front_html(front)
    drawn = ElementTree.fromstring("<svg" + html.split("<svg")[1].split("</svg>")[0] + "</svg>")
    lines = [[float(p.split(",")[0]) for p in line.attrib["points"].split()] for line in drawn.iter("polyline")]
    assert [len(line) for line in lines] == [3, 2]
    assert lines[0][-1] == lines[1][-1] == max(lines[0])
    assert lines[0] == sorted(lines[0])
    assert "http" not in html


def test_an_experiment_without_times_has_no_front() -> None:
    plain = [{key: value for key, value in r.items() if key != "stage_ms"} for r in outcome().records]
    assert front_of(dataclasses.replace(outcome(), records=plain)) is None


def test_times_are_part_of_the_ground_where_they_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selections share the scores; cells of other experiments stay what they are."""
    monkeypatch.setattr(workbench, "data_key", lambda *_: "tables")
    recipe = load_experiment("front")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=str(tmp_path)))
    timed, plain = (Workbench(dataclasses.replace(recipe, timed=on), tmp_path).ground for on in (True, False))
    assert timed == {**plain, "timed": "onnxruntime"}
    found = list(cells_of(recipe, recipe.prune))
    assert [(c.prune.budget, c.prune.selection) for c in found[:3]] == [
        ("flops", "threshold"),
        ("flops", "greedy"),
        ("latency", "greedy"),
    ]
    assert len({cell.key(timed) for cell in found}) == 9
    assert len({cell.scoring_key(timed) for cell in found}) == 1
    assert len({cell.scoring_key(plain) for cell in found}) == 3


def test_single_weights_are_not_timed() -> None:
    with pytest.raises(RecipeError, match="timed = true for single weights"):
        ExperimentRecipe(title="T", timed=True)


def test_models_take_turns_and_the_least_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    class Session:
        def __init__(self, name: str, seconds: list[float]) -> None:
            self.name, self.left = name, seconds

        def run(self, *_: object) -> None:
            order.append(self.name)
            clock[0] += self.left.pop(0)

    monkeypatch.setattr(stage_times, "ROUNDS", 3)
    monkeypatch.setattr(stage_times, "time", SimpleNamespace(process_time=lambda: clock[0]))
    dense, cut = (Session(name, list(ms)) for name, ms in (("dense", (0.03, 0.02, 0.04)), ("cut", (0.01, 0.02, 0.03))))
    found = least_ms({"camera": [TimedStage(session=s, feeds={}) for s in (dense, cut)]})
    np.testing.assert_allclose(found["camera"], [20.0, 10.0])
    assert order == ["dense", "cut"] * 3
