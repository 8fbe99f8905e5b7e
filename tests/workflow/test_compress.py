"""Widths follow the target unless the recipe says otherwise."""

from __future__ import annotations

import dataclasses

import pytest

from altermoma.recipe import EngineRecipe, PruneRecipe, Recipe
from altermoma.workflow.compress import with_target_widths


@pytest.mark.parametrize(("target", "precision", "step"), [("generic", "fp16", 16), ("orin-jp62", "fp16", 8)])
def test_the_channel_step_is_the_targets(target: str, precision: str, step: int) -> None:
    recipe = Recipe(engine=EngineRecipe(target=target, precision=precision))
    assert with_target_widths(recipe).prune.channel_step == step


def test_a_step_in_the_recipe_wins() -> None:
    recipe = Recipe(prune=PruneRecipe(channel_step=4), engine=EngineRecipe(target="orin-jp62"))
    assert with_target_widths(recipe) == recipe
    assert with_target_widths(dataclasses.replace(recipe, prune=PruneRecipe())).prune.channel_step == 8
