"""Recipes: what is written comes back, and whatever cannot be meant is named before any work begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from altermoma import recipe as recipes
from altermoma.errors import RecipeError
from altermoma.recipe import Recipe


def test_round_trip() -> None:
    assert recipes.parse(Recipe().to_toml()) == Recipe()
    assert recipes.parse("") == Recipe()


def test_every_number_has_a_range() -> None:
    numbers = {
        section: {key for key, value in values.items() if type(value) in (int, float)}
        for section, values in Recipe().to_dict().items()
        if isinstance(values, dict)
    }
    assert {section: set(ranges) for section, ranges in recipes.RANGES.items()} == {
        section: keys for section, keys in numbers.items() if keys
    }


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("[finetune]\nlr = -1e-3", "finetune.lr = -0.001", "above 0"),
        ("[finetune]\nlr = nan", "finetune.lr = nan", "above 0"),
        ("[finetune]\nlr = inf", "finetune.lr = inf", "above 0"),
        ("[finetune]\nsteps = -1", "finetune.steps = -1", "at least 0"),
        ("[finetune]\ncheckpoint_every = 0", "finetune.checkpoint_every = 0", "at least 1"),
        ("[finetune]\nema_decay = 1.0", "finetune.ema_decay = 1.0", "at least 0 and below 1"),
        ("[prune]\namount = 50", "prune.amount = 50.0", "at least 0 and below 1"),
        ("[prune]\nseed = -1", "prune.seed = -1", "at least 0"),
        ("[prune]\nalpha = inf", "prune.alpha = inf", "a finite number"),
        ("[prune]\nscope = []", "prune.scope = []", "at least one partition"),
        ("[prune]\nscope = ['lidar', 'lidar']", "prune.scope = ", "each once"),
        ("[prune]\nscope = 'lidar'", "prune.scope = 'lidar'", "a list"),
        ("[data]\nsynth_scenes = 0", "data.synth_scenes = 0", "at least 1"),
        ("[export]\nopset = 18", "export.opset = 18", "17"),
        ("[bench]\nthreads = '2'", "bench.threads = '2' (str)", "a whole number"),
        ("[bench]\nrounds = 2.0", "bench.rounds = 2.0 (float)", "a whole number"),
        ("[prune]\namount = true", "prune.amount = True (bool)", "a number"),
        ("[engine]\nprecision = 'fp8'", "engine.precision = 'fp8'", "'fp16'"),
        ("prune = 0.5", "prune = 0.5", "a table [prune]"),
        ("name = 'a/b'", "name = 'a/b'", "the name of a folder"),
        ("name = ''", "name = ''", "the name of a folder"),
        ("[data]\nversion = '../v1.0-mini'", "data.version = '../v1.0-mini'", "the name of a folder"),
        ("[prune]\namonut = 0.3", "unknown recipe key prune.amonut", "a known key"),
        ("[prune", "recipe is not valid TOML", "a TOML file"),
    ],
)
def test_impossible_values_say_what_was_found_expected_and_to_do(text: str, found: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes.parse(text)
    assert found in caught.value.found
    assert expected in caught.value.expected
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_no_fine_tuning_is_a_choice() -> None:
    assert recipes.parse("[finetune]\nsteps = 0\n[prune]\namount = 0").finetune.steps == 0


def test_values_changed_in_a_program_are_checked_too() -> None:
    recipe = Recipe()
    with pytest.raises(RecipeError, match=r"finetune\.steps = -5"):
        dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune, steps=-5))


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe at"):
        recipes.load(tmp_path)
    binary = tmp_path / "weights.toml"
    binary.write_bytes(b"\x80\x04\xff")
    with pytest.raises(RecipeError, match=r"cannot read .*weights\.toml") as caught:
        recipes.load(binary)
    assert caught.value.remedy
