"""Zeros in the steps of a run: which 2:4 can be asked for, and the masks of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from altermoma.deploy.targets import load_target
from altermoma.errors import PruningError, RecipeError
from altermoma.recipe import Recipe

if TYPE_CHECKING:
    from altermoma.pruning.two_four import Masks

SPARSITY = "sparsity"
"""Key of a checkpoint's metadata; a dense one has none."""


def check_sparsity(recipe: Recipe) -> None:
    """Says before any work that an engine could not use what is asked for.

    Raises:
        RecipeError: 2:4 for a target without sparse kernels, or in fp32.
    """
    if recipe.engine.sparsity == "dense":
        return
    target = load_target(recipe.engine.target)
    if not target.sparse:
        raise RecipeError(
            f"2:4 sparsity for target {target.name}, which has no sparse kernels",
            expected="a GPU of compute capability 8.0 or newer (sparse = true in its target.toml)",
            remedy="run with --sparsity dense, and prune channels with --prune-flops",
        )
    if recipe.engine.precision == "fp32":
        raise RecipeError(
            "2:4 sparsity in fp32, which has no sparse kernels",
            expected="fp16 or int8",
            remedy="run with --engine fp16, or with --sparsity dense",
        )


def sparsity_inputs(recipe: Recipe) -> dict[str, Any]:
    """What decides the weights that become 2:4, for the key of a pruning step."""
    if recipe.engine.sparsity == "dense":
        return {}
    return {SPARSITY: [recipe.prune.two_four_rule, recipe.prune.two_four_permute]}


def check_prunable(recipe: Recipe, checkpoint: Path) -> None:
    """Zeros that training keeps would be forgotten by pruning anew, and grow back; 2:4 that becomes 2:4 again is none.

    Raises:
        PruningError: a checkpoint with zeros of another kind than the recipe makes.
    """
    record = masks_of(checkpoint)[1].get(SPARSITY)
    again = recipe.engine.sparsity == "2:4" and recipe.prune.budget != "weights"
    if record is not None and not (again and record["pattern"] == "2:4"):
        raise PruningError(
            f"{checkpoint.name} has {record['pattern']} that were pruned before",
            expected="a checkpoint without zeros that training keeps, or 2:4 to become 2:4",
            remedy="prune the dense checkpoint, once; a 2:4 one goes on with --sparsity 2:4",
        )


def masks_of(checkpoint: Path) -> tuple[Masks, dict[str, Any]]:
    """Masks that fine-tuning must keep, and what the fine-tuned checkpoint says of them; both empty for a dense one.

    A checkpoint of another program is dense.
    """
    from altermoma.checkpoints.io import PICKLED, load_checkpoint
    from altermoma.pruning.claims import claimed_masks

    if checkpoint.suffix in PICKLED:
        return {}, {}
    state, metadata = load_checkpoint(checkpoint)
    record = metadata.get(SPARSITY)
    return claimed_masks(state, record, checkpoint.name), {} if record is None else {SPARSITY: record}
