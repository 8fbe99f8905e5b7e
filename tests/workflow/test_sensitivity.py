"""`altermoma calibrate` and measured stages: where models are exported and tuned, and what tuning goes by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from altermoma.calib.search import Found
from altermoma.checkpoints.io import load_checkpoint
from altermoma.errors import RecipeError
from altermoma.recipe import CalibrationRecipe, ComputeRecipe, DataRecipe, EngineRecipe, Recipe, TrainRecipe
from altermoma.workflow import oneshot, sensitivity, stage_times
from altermoma.workflow.calibrate import check_untuned
from altermoma.workflow.place import Workplace
from altermoma.workflow.sensitivity import TUNED_FILE, calibrate_to_folder
from altermoma.workflow.single import export_to_bundle

FOUND = Found(groups=frozenset({"camera/a"}), left_out=("lidar/b",), map_fp32=0.5, map_int8=0.49, ranking=())
RECORD = {"sparsity": {"rule": "magnitude"}}
COMPUTE = ComputeRecipe(device="cpu", accumulate=2)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the long steps of the command were called with; they themselves are left out."""
    told: dict[str, Any] = {}
    calibrated = SimpleNamespace(
        plans={}, groups=frozenset({"camera/a", "lidar/b"}), ranges=SimpleNamespace(tensors={}), settings=None
    )
    calibrated.notes = dict

    def on_device(place: Workplace, checkpoint: Path) -> nn.Module:
        told["moved"] = place.model_on_host(checkpoint)
        return told["moved"]  # type: ignore[no-any-return]

    def export_model(model: nn.Module, *_: object, **__: object) -> None:
        told["exported"] = model

    def train(model: nn.Module, *_: object, **given: object) -> SimpleNamespace:
        told.update(given, trained=model)
        return SimpleNamespace(model=model, steps=3)

    def data_limits(_: object, __: object, groups: frozenset[str], ___: object) -> dict[str, float]:
        told["groups"] = groups
        return {}

    @contextlib.contextmanager
    def unfinished(_: str, __: str, inputs: dict[str, Any], work: Callable[[Path], Any]) -> Iterator[None]:
        told["inputs"] = inputs
        work(tmp_path)
        yield

    monkeypatch.setattr(Workplace, "model", on_device)
    for name, stand_in in {
        "export_model": export_model,
        "calibrate": lambda *_: calibrated,
        "search_groups": lambda *_: FOUND,
        "found_notes": lambda *_: {},
        "masks_of": lambda _: ({}, RECORD),
        "unfinished": unfinished,
    }.items():
        monkeypatch.setattr(sensitivity, name, stand_in)
    monkeypatch.setattr("altermoma.training.loop.train", train)
    monkeypatch.setattr("altermoma.calib.tune.data_limits", data_limits)
    return told


def asked(root: Path, **calibration: float) -> Recipe:
    return Recipe(
        data=DataRecipe(root=str(root)),
        calibration=CalibrationRecipe(**calibration),  # type: ignore[arg-type]
        compute=COMPUTE,
    )


def test_the_host_s_model_is_exported_and_the_device_s_is_tuned(
    told: dict[str, Any], tiny_nuscenes: Path, tmp_path: Path
) -> None:
    calibrate_to_folder(asked(tiny_nuscenes, tune_steps=3), tmp_path / "out")
    assert told["trained"] is told["moved"]
    assert told["exported"] is not told["moved"]


def test_tuning_rounds_what_the_search_found_and_keeps_2_4(
    told: dict[str, Any], tiny_nuscenes: Path, tmp_path: Path
) -> None:
    calibrate_to_folder(asked(tiny_nuscenes, tune_steps=3, max_map_drop=1.0), tmp_path / "out")
    assert told["groups"] == FOUND.groups
    assert told["compute"] == COMPUTE
    assert load_checkpoint(tmp_path / "out" / TUNED_FILE)[1]["sparsity"] == RECORD["sparsity"]


def test_tuning_goes_by_the_recipe_of_fine_tuning_and_ranges_do_not(
    told: dict[str, Any], tiny_nuscenes: Path, tmp_path: Path
) -> None:
    def inputs(recipe: Recipe) -> dict[str, Any]:
        calibrate_to_folder(recipe, tmp_path / "out")
        return dict(told["inputs"])

    other = TrainRecipe(lr=1e-5)
    plain, tuned = asked(tiny_nuscenes), asked(tiny_nuscenes, tune_steps=3)
    assert inputs(tuned) != inputs(dataclasses.replace(tuned, finetune=other))
    assert inputs(plain) == inputs(dataclasses.replace(plain, finetune=other))


def test_exports_refuse_to_tune(tmp_path: Path) -> None:
    recipe = Recipe(engine=EngineRecipe(precision="int8"), calibration=CalibrationRecipe(tune_steps=5))
    with pytest.raises(RecipeError, match=r"tune_steps = 5 in an export"):
        export_to_bundle(recipe, tmp_path / "bundle")
    with pytest.raises(RecipeError, match=r"tune_steps = 5 in an export"):
        oneshot.run(recipe, tmp_path / "run")
    check_untuned(dataclasses.replace(recipe, engine=EngineRecipe(precision="fp16")))


def test_stages_are_measured_on_the_host(tiny_nuscenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workplace(asked(tiny_nuscenes))
    host = place.model_on_host(place.checkpoint)

    class ExportedError(Exception):
        pass

    def export_model(model: nn.Module, *_: object, **__: object) -> None:
        assert model is host
        raise ExportedError

    monkeypatch.setattr(nn.Module, "cpu", lambda _: host)
    monkeypatch.setattr("altermoma.export.export_model.export_model", export_model)
    with pytest.raises(ExportedError):
        stage_times.measure_tables(place, place.dense_model())
