"""What a recipe leaves open follows target and model; frames are read when they are needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from altermoma.errors import PruningError
from altermoma.pruning.one_round import batches_needed
from altermoma.recipe import DataRecipe, EngineRecipe, PruneRecipe, Recipe
from altermoma.workflow.place import Workplace
from altermoma.workflow.scoring import scoring_batches, with_open_keys_filled


@pytest.mark.parametrize(("target", "precision", "step"), [("generic", "fp16", 16), ("orin-jp62", "fp16", 8)])
def test_the_channel_step_is_the_targets(target: str, precision: str, step: int) -> None:
    recipe = Recipe(engine=EngineRecipe(target=target, precision=precision))  # type: ignore[arg-type]
    assert with_open_keys_filled(recipe).prune.channel_step == step


@pytest.mark.parametrize(
    ("model", "counts"),
    [("bevfusion-tiny", (8, 8, 4, 2)), ("bevfusion-mit-r50-second", (2, 2, 1, 1))],
)
def test_batches_go_by_the_size_of_the_model(
    model: str, counts: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    found = with_open_keys_filled(Recipe(model=model)).prune
    assert (found.score_batches, found.reactivation_batches, found.reri_batches, found.batch_size) == counts
    assert f"score_batches = {counts[0]}, reactivation_batches = {counts[1]}" in capsys.readouterr().err
    given = Recipe(model=model, prune=PruneRecipe(score_batches=5))
    assert with_open_keys_filled(given).prune == dataclasses.replace(found, score_batches=5)


def test_what_the_recipe_says_wins(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"score_batches": 1, "reactivation_batches": 1, "reri_batches": 1, "batch_size": 1}
    full = PruneRecipe(channel_step=4, lidar_channel_step=4, **sizes)
    recipe = Recipe(prune=full, engine=EngineRecipe(target="orin-jp62"))
    assert with_open_keys_filled(recipe) == recipe
    assert capsys.readouterr().err == ""


def test_counts_left_open_are_no_counts() -> None:
    with pytest.raises(PruningError, match=r"prune\.reri_batches = 0"):
        batches_needed(PruneRecipe(score_batches=1, reactivation_batches=1))


def test_batches_are_joined_when_they_are_asked_for(tiny_nuscenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune = PruneRecipe(score_batches=3, reactivation_batches=2, reri_batches=1, batch_size=2)
    place = Workplace(Recipe(data=DataRecipe(root=str(tiny_nuscenes)), prune=prune))
    batches, read = scoring_batches(place), []
    frames = place.train
    original = type(frames).__getitem__
    monkeypatch.setattr(type(frames), "__getitem__", lambda self, i: (read.append(i), original(self, i))[1])
    assert len(batches) == 3
    assert not read
    (last, truths), again = batches[1:][-1], batches[2]
    assert read == [*batches.indices[2].tolist()] * 2
    assert len(truths) == last.size == 2
    assert all(torch.equal(tensor, again[0][name]) for name, tensor in last.tensors.items())
    assert [batch.size for batch, _ in batches] == [2, 2, 2]
