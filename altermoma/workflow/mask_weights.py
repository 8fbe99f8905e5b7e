"""Pruning weight by weight: the shape of the model stays, so this is for comparing methods, not for engines."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from altermoma.errors import PruningError, RecipeError
from altermoma.progress import say
from altermoma.recipe import Recipe
from altermoma.workflow.compress import PRUNED_FILE, scored
from altermoma.workflow.place import Workplace
from altermoma.workflow.scoring import scoring_batches
from altermoma.workflow.sparsity import SPARSITY, check_prunable


def check_single_weights(recipe: Recipe) -> None:
    """Says before any work that 2:4 and a share of single weights are two ways to choose the same zeros."""
    if recipe.prune.budget == "weights" and recipe.engine.sparsity == "2:4":
        raise RecipeError(
            'prune.budget = "weights" with 2:4',
            expected="zeros wherever the scores put them, or two in each four",
            remedy="leave out --sparsity 2:4, or prune channels with --prune-flops",
        )


def check_physical(recipe: Recipe) -> None:
    """Says before any work that a run which ends in engines needs a budget that makes them smaller.

    Raises:
        RecipeError: a budget in single weights.
    """
    if recipe.prune.budget == "weights":
        raise RecipeError(
            'prune.budget = "weights" in altermoma-export',
            expected="a budget that engines gain from: flops, channels, params or latency",
            remedy="--prune-flops removes channels, --sparsity 2:4 makes zeros that kernels skip; altermoma prune "
            "--prune-weights and altermoma train show what single zeros cost",
        )


def mask_weights(place: Workplace, folder: Path) -> dict[str, Any]:
    """Scores every weight of the scope and sets those below the threshold to zero; the weights are kept in the folder.

    A kill costs one batch.

    Raises:
        PruningError: a partition that would be left without a weight, or a checkpoint that has such zeros already.
    """
    from altermoma.checkpoints.io import describe, save_checkpoint
    from altermoma.pruning.groups import fusion_groups
    from altermoma.pruning.methods.work import weight_work
    from altermoma.pruning.single_weights import record_of
    from altermoma.pruning.unstructured import global_masks, masked_model, sparsity_report
    from altermoma.training.losses import task_loss

    check_prunable(place.recipe, place.checkpoint)
    recipe, unfinished, dense = place.recipe.prune, folder / "scores", place.dense_model()
    work = weight_work(dense, scoring_batches(place), recipe, task_loss, per=recipe.threshold)
    masks = global_masks(dense, scored(place, work, unfinished), recipe.amount, per=recipe.threshold)
    report = sparsity_report(dense, masks)
    for partition, share in report.by_partition.items():
        if share == 1.0:
            raise PruningError(
                f"{recipe.method} would remove every weight of {partition} at {recipe.amount:.1%} of all",
                expected="some left in each partition",
                remedy='lower the amount, or give each partition its own threshold: prune.threshold = "partition"',
            )
    say(
        f"removed {report.total:.1%} of the weights (asked {recipe.amount:.1%}): "
        + ", ".join(f"{partition} {share:.1%}" for partition, share in report.by_partition.items())
    )
    record = {
        "budget": recipe.budget,
        "method": recipe.method,
        "asked": recipe.amount,
        "got": report.total,
        "by_partition": report.by_partition,
        "by_layer": report.by_layer,
    }
    kept = {group.name: list(range(group.width)) for group in fusion_groups(dense)}
    metadata = describe(dense, place.recipe.model) | {"pruning": record, "kept": kept, SPARSITY: record_of(masks)}
    save_checkpoint(folder / PRUNED_FILE, masked_model(dense, masks).state_dict(), metadata)
    shutil.rmtree(unfinished, ignore_errors=True)
    return record
