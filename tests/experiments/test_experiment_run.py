"""Two cells of an experiment from end to end; a second run finds them done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from altermoma.checkpoints.io import save_checkpoint
from altermoma.data.synth import write_world
from altermoma.experiments.recipe import ExperimentRecipe, load_experiment
from altermoma.experiments.run import run_experiment
from altermoma.experiments.workbench import Workbench
from altermoma.models.presets import build
from altermoma.recipe import DataRecipe

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
    assert not (tmp_path / "training").exists()

    def unexpected(*_: object) -> None:
        raise AssertionError("a cell was run again")

    monkeypatch.setattr(Workbench, "run", unexpected)
    again = run_experiment(recipe, tmp_path)
    assert again.records == found.records
    assert again.dense == found.dense
