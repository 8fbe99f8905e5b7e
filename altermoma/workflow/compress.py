"""Scoring, pruning and fine-tuning steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altermoma.data.dataset import batch_indices
from altermoma.deploy.targets import load_target
from altermoma.frames import Boxes
from altermoma.progress import track
from altermoma.recipe import Recipe
from altermoma.workflow.place import Workplace

if TYPE_CHECKING:
    from altermoma.models.batch import FrameBatch

PRUNED_FILE = "pruned.safetensors"


def with_target_widths(recipe: Recipe) -> Recipe:
    """The recipe with the channel step of its target and precision, where it leaves that open."""
    if recipe.prune.channel_step:
        return recipe
    step = load_target(recipe.engine.target).step(recipe.engine.precision)
    return dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, channel_step=step))


def scoring_batches(place: Workplace) -> list[tuple[FrameBatch, list[Boxes]]]:
    """Training frames as they are, in an order fixed by the recipe's seed."""
    from altermoma.models.batch import collate
    from altermoma.pruning.prune import batches_needed

    recipe = place.recipe.prune
    batches = []
    for step in track(range(batches_needed(recipe)), "Reading scoring frames"):
        indices = batch_indices(len(place.train), recipe.batch_size, recipe.seed, step)
        samples = [place.train[int(index)] for index in indices]
        inputs = collate([sample.inputs for sample in samples], place.geometry)
        batches.append((inputs, [sample.truth for sample in samples]))
    return batches


def reference_batch(place: Workplace) -> FrameBatch:
    """The first validation frame: FLOPs are counted on it, and the bundle carries it."""
    from altermoma.models.batch import collate

    return collate([place.val[0].inputs], place.geometry)


def prune_model(place: Workplace, folder: Path) -> dict[str, Any]:
    """Scores and shrinks the dense model; the pruned weights are kept in the folder."""
    from altermoma.checkpoints.io import save_checkpoint
    from altermoma.pruning.prune import prune
    from altermoma.training.losses import task_loss

    recipe = place.recipe
    result = prune(place.dense_model(), scoring_batches(place), recipe.prune, task_loss, reference_batch(place))
    record = result.to_json()
    save_checkpoint(folder / PRUNED_FILE, result.model.state_dict(), {"preset": recipe.model, "pruning": record})
    return record


def finetune_model(place: Workplace, start: Path, folder: Path) -> dict[str, Any]:
    """Trains the pruned model; a kill costs at most `checkpoint_every` steps."""
    from altermoma.checkpoints.io import save_checkpoint
    from altermoma.training.loop import train

    recipe = place.recipe
    result = train(place.model(start), place.train, recipe.finetune, folder=folder)
    save_checkpoint(folder / PRUNED_FILE, result.model.state_dict(), {"preset": recipe.model, "steps": result.steps})
    return {"steps": result.steps}
