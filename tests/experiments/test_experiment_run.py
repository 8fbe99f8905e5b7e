"""Two cells of an experiment from end to end; a second run finds them done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from altermoma.checkpoints.io import load_checkpoint, save_checkpoint
from altermoma.data.synth import write_world
from altermoma.experiments.front import front_of
from altermoma.experiments.recipe import ExperimentRecipe, load_experiment
from altermoma.experiments.run import run_experiment
from altermoma.experiments.workbench import Workbench
from altermoma.models.presets import build
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.indicators import ChannelTerms
from altermoma.pruning.methods.scoring import mean_magnitude
from altermoma.recipe import DataRecipe, PruneRecipe, Recipe
from altermoma.storage import read_json
from altermoma.workflow import stage_times
from altermoma.workflow.compress import prune_model
from altermoma.workflow.given_tables import latency_line
from altermoma.workflow.place import Workplace
from altermoma.workflow.scoring import with_open_keys_filled

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A world of two scenes, and random weights."""
    folder = tmp_path_factory.mktemp("experiment")
    write_world(folder / "world", names=("scene-0061", "scene-0103"), keyframes=4, jobs=1)
    torch.manual_seed(0)
    save_checkpoint(folder / "random.safetensors", build("bevfusion-tiny").state_dict(), {"preset": "bevfusion-tiny"})
    return str(folder / "world"), str(folder / "random.safetensors")


def reduced(name: str, inputs: tuple[str, str]) -> ExperimentRecipe:
    recipe = load_experiment(name).as_reduced()
    return dataclasses.replace(
        recipe,
        data=DataRecipe(root=inputs[0]),
        checkpoint=inputs[1],
        finetune=dataclasses.replace(recipe.finetune, steps=1),
    )


@pytest.mark.parametrize("name", ["table1-resnet", "table5"])
def test_two_cells(name: str, inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = reduced(name, inputs)
    late = run_experiment(recipe, tmp_path, only_read=True)
    assert len(late.missing) == 2
    found = run_experiment(recipe, tmp_path)
    assert not found.missing
    assert [record["method"] for record in found.records] == ["altermoma", "snip"]
    for record in found.records:
        if recipe.granularity == "weights":
            assert record["removed"]["weights"] == pytest.approx(recipe.amounts[0], abs=1e-4)
        else:
            assert record["removed"]["got"] == pytest.approx(recipe.amounts[0], abs=0.03)
    assert not list((tmp_path / "training").iterdir()), "what was unfinished is gone"

    def unexpected(*_: object) -> None:
        raise AssertionError("a cell was run again")

    monkeypatch.setattr(Workbench, "run", unexpected)
    again = run_experiment(recipe, tmp_path)
    assert again.records == found.records
    assert again.dense == found.dense


def test_timed_cells(inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget in milliseconds: the tables are measured for the first cell, the cut model beside the dense one."""
    monkeypatch.setattr(stage_times, "KEPT", (1.0, 0.5))
    monkeypatch.setattr(stage_times, "ROUNDS", 2)
    recipe = reduced("front", inputs)
    latency = load_experiment("front").variants[-1]
    assert latency.budget == "latency"
    recipe = dataclasses.replace(recipe, variants=(latency,), methods=("altermoma",), amounts=(0.15,))
    found = run_experiment(recipe, tmp_path)
    (record,) = found.records
    assert record["removed"]["budget"] == "latency"
    assert record["removed"]["got"] == pytest.approx(0.15, abs=0.05)
    assert set(record["stage_ms"]) == {"dense", "cut"}
    for times in record["stage_ms"].values():
        assert set(times) == {"camera", "view", "lidar", "fusion", "head"}
        assert min(times.values()) > 0.0
    assert len(list((tmp_path / "latency").iterdir())) == 1
    front = front_of(found)
    assert front is not None
    assert [point.amount for point in front.rows[latency.name]] == [0.15]


def test_prune_with_another_method_and_a_latency_budget(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`altermoma prune --method magnitude` with a budget in milliseconds, which are measured first and kept."""
    monkeypatch.setattr(stage_times, "KEPT", (1.0, 0.5))
    monkeypatch.setattr(stage_times, "ROUNDS", 2)
    prune = PruneRecipe(method="magnitude", budget="latency", amount=0.15, min_channels=4)
    recipe = Recipe(checkpoint=inputs[1], data=DataRecipe(root=inputs[0]), prune=prune)
    place = Workplace(with_open_keys_filled(recipe))
    record = prune_model(place, tmp_path)
    assert record["method"] == "magnitude"
    assert record["got"] == pytest.approx(0.15, abs=0.05)
    assert "measured on this machine's processor, " in latency_line(record["latency"])
    tables = read_json(tmp_path / "latency.json")
    assert set(tables) == {"camera", "view", "lidar", "fusion", "head"}
    assert all(table["shares"][-1] == 1.0 for table in tables.values())
    weights, metadata = load_checkpoint(tmp_path / "pruned.safetensors")
    dense = place.dense_model()
    (group,) = (group for group in fusion_groups(dense) if group.name == "fusion_layer.0")
    kept = metadata["kept"]["fusion_layer.0"]
    assert weights["fusion_layer.0.weight"].shape[0] == len(kept) <= group.width
    magnitudes = mean_magnitude(dense, ChannelTerms(dense, [group], "channel"))["fusion_layer.0"]
    assert set(kept) == set(magnitudes.topk(len(kept)).indices.tolist())
    monkeypatch.setattr(stage_times, "measure_tables", None)
    assert prune_model(place, tmp_path) == record, "measured times are not measured again"
