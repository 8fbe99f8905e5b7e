"""What killed commands left in the cache: kept for the next one, and not for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path

import pytest

from altermoma.recipe import ComputeRecipe, DataRecipe, EngineRecipe, PruneRecipe, Recipe
from altermoma.workflow.place import Workplace
from altermoma.workflow.plan import prune_inputs, training_inputs
from altermoma.workflow.runs import lock
from altermoma.workflow.single import ABANDONED_DAYS, UNFINISHED, train_model, unfinished

DAY = 86400


def left_behind(cache: Path, name: str, days: float) -> Path:
    """Work of a killed command, untouched for so many days."""
    place = cache / UNFINISHED / name
    (place / "prune" / "scores").mkdir(parents=True)
    (place / ".lock").write_text("")
    (place / "prune" / "started.json").write_text("{}")
    age(place, days)
    return place


def age(place: Path, days: float) -> None:
    then = time.time() - days * DAY
    for path in (*place.rglob("*"), place):
        os.utime(path, (then, then))


def test_old_work_is_removed_and_young_work_and_work_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALTERMOMA_CACHE", str(tmp_path))
    old, young = left_behind(tmp_path, "prune-old", ABANDONED_DAYS + 1), left_behind(tmp_path, "prune-young", 3)
    used = left_behind(tmp_path, "prune-used", ABANDONED_DAYS + 1)
    touched = left_behind(tmp_path, "prune-touched", ABANDONED_DAYS + 1)
    (touched / "prune" / "more").write_text("")
    with contextlib.ExitStack() as stack:
        assert lock(used, stack)
        age(used, ABANDONED_DAYS + 1)
        with unfinished("eval", "Evaluation", {}, lambda folder: {"found": 1}) as (_, record):
            assert record == {"found": 1}
    assert not old.exists()
    assert young.is_dir()
    assert used.is_dir()
    assert touched.is_dir()
    assert sorted(path.name for path in (tmp_path / UNFINISHED).iterdir()) == [
        "prune-touched",
        "prune-used",
        "prune-young",
    ]


def test_keys_of_trained_weights_tell_what_decides_them() -> None:
    recipe = Recipe()
    other = dataclasses.replace(recipe, compute=ComputeRecipe(precision="bf16"))
    elsewhere = dataclasses.replace(recipe, compute=ComputeRecipe(device="cpu", workers=3))
    assert training_inputs(recipe) == training_inputs(elsewhere) != training_inputs(other)
    assert prune_inputs(Workplace(recipe)) == prune_inputs(Workplace(other))
    rounds = [dataclasses.replace(r, prune=dataclasses.replace(r.prune, method="imp")) for r in (recipe, other)]
    assert prune_inputs(Workplace(rounds[0])) != prune_inputs(Workplace(rounds[1]))


def test_measured_milliseconds_are_those_of_the_target_s_graphs() -> None:
    targets = [EngineRecipe(target=name) for name in ("orin-jp51", "thor-jp72")]
    for budget, same in (("latency", False), ("flops", True)):
        prune = PruneRecipe(budget=budget)  # type: ignore[arg-type]
        keys = [prune_inputs(Workplace(Recipe(prune=prune, engine=engine))) for engine in targets]
        assert (keys[0] == keys[1]) == same


def test_training_is_told_what_its_frames_are(
    tiny_nuscenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run that was killed does not go on with the same frames of other sweeps."""
    told: list[object] = []

    class ToldError(Exception):
        pass

    def train(*_: object, data: object, **__: object) -> None:
        told.append(data)
        raise ToldError

    monkeypatch.setattr("altermoma.training.loop.train", train)
    for sweeps in (3, 5, 3):
        recipe = Recipe(data=DataRecipe(root=str(tiny_nuscenes), sweeps=sweeps), compute=ComputeRecipe(device="cpu"))
        with pytest.raises(ToldError):
            train_model(recipe, tmp_path)
    assert told[0] == told[2] != told[1]
