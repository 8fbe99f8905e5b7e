"""Scoring, pruning and fine-tuning steps."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altermoma.progress import say
from altermoma.workflow.place import Workplace
from altermoma.workflow.rounds import round_training
from altermoma.workflow.scoring import scoring_batches
from altermoma.workflow.steps import peak_memory_mib

if TYPE_CHECKING:
    from altermoma.models.batch import FrameBatch
    from altermoma.models.fusion import FusionModel
    from altermoma.pruning.channels import ChannelVectors
    from altermoma.training.distill import Teacher

PRUNED_FILE = "pruned.safetensors"


def reference_batch(place: Workplace) -> FrameBatch:
    """The first validation frame: FLOPs are counted on it, and the bundle carries it."""
    from altermoma.models.batch import collate

    return collate([place.val[0].inputs], place.geometry)


def prune_model(place: Workplace, folder: Path) -> dict[str, Any]:
    """Scores and shrinks the dense model; the pruned weights are kept in the folder. A kill costs one batch."""
    from altermoma.checkpoints.io import describe, save_checkpoint
    from altermoma.pruning.prune import prune_by_scores

    recipe, unfinished = place.recipe, folder / "scores"
    model, reference = place.dense_model(), reference_batch(place)
    scores = _scores(place, model, reference, unfinished) if recipe.prune.amount > 0 else {}
    result = prune_by_scores(model, scores, recipe.prune, reference)
    record = result.to_json() | {"method": recipe.prune.method}
    kept = {name: channels.tolist() for name, channels in result.keep.items()}
    metadata = describe(result.model, recipe.model) | {"pruning": record, "kept": kept}
    save_checkpoint(folder / PRUNED_FILE, result.model.state_dict(), metadata)
    shutil.rmtree(unfinished, ignore_errors=True)
    return record


def _scores(place: Workplace, model: FusionModel, reference: FrameBatch, folder: Path) -> ChannelVectors:
    """Scores of the recipe's method; what they took is printed."""
    from altermoma.pruning.kept import Kept
    from altermoma.pruning.methods.choose import scores_of
    from altermoma.pruning.methods.work import channel_work
    from altermoma.training.losses import task_loss

    recipe = place.recipe.prune
    rounds = dataclasses.replace(place.recipe.finetune, steps=recipe.imp_steps)
    work = channel_work(model, scoring_batches(place), recipe, task_loss, reference)
    training = round_training(place, rounds, folder)
    found = scores_of(dataclasses.replace(work, kept=Kept(folder), retrain=training))
    say(f"scores of {recipe.method}: {found.seconds:.1f} s of processor time, at most {peak_memory_mib():.0f} MiB")
    return found.scores


def teacher_of(place: Workplace, pruned: Path) -> Teacher:
    """The dense model as the teacher of a pruned one, channel by channel."""
    import torch

    from altermoma.checkpoints.io import load_checkpoint
    from altermoma.pruning.groups import fusion_groups
    from altermoma.pruning.surgery import kept_entries
    from altermoma.training.distill import Teacher

    dense = place.dense_model()
    groups = fusion_groups(dense)
    keep = {name: torch.tensor(channels) for name, channels in load_checkpoint(pruned)[1]["kept"].items()}

    def kept(layer: str) -> torch.Tensor:
        return kept_entries(groups, keep, layer, 1, dense.get_parameter(layer).shape[1])

    return Teacher(
        model=dense,
        fuser_channels=kept("fusion_layer.0.weight").to(place.device),
        head_channels=kept("bbox_head.shared_conv.weight").to(place.device),
    )


def finetune_model(place: Workplace, start: Path, folder: Path) -> dict[str, Any]:
    """Trains the pruned model; a kill costs at most `checkpoint_every` steps."""
    from altermoma.checkpoints.io import describe, save_checkpoint
    from altermoma.training.loop import detection_objective, train

    recipe = place.recipe
    teacher = teacher_of(place, start) if recipe.finetune.distill_weight > 0 else None
    objective = detection_objective(recipe.finetune, teacher)
    result = train(
        place.model(start), place.train, recipe.finetune, folder=folder, objective=objective, compute=recipe.compute
    )
    metadata = describe(result.model, recipe.model) | {"steps": result.steps}
    save_checkpoint(folder / PRUNED_FILE, result.model.state_dict(), metadata)
    return {"steps": result.steps}
