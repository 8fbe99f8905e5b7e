"""Training between the rounds of a pruning method that asks for it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from altermoma.errors import PruningError
from altermoma.workflow.place import Workplace

if TYPE_CHECKING:
    from torch import nn

    from altermoma.pruning.methods.scoring import Retrain
    from altermoma.pruning.unstructured import Masks
    from altermoma.recipe import TrainRecipe

ROUNDS_APART = 1000
"""Between the seeds of two rounds, so that each has an order of frames of its own."""


def round_training(place: Workplace, recipe: TrainRecipe, folder: Path) -> Retrain:
    """Trains as the recipe says, by labels alone: without the dense model as a teacher.

    Each round in a folder of its own, so that a kill costs little.
    """

    def retrain(model: nn.Module, masks: Masks, turn: int) -> nn.Module:
        from altermoma.models.fusion import FusionModel
        from altermoma.training.loop import train

        if not isinstance(model, FusionModel):
            raise PruningError(f"rounds of training for a {type(model).__name__}", expected="a FusionModel")
        ours = dataclasses.replace(recipe, seed=recipe.seed + ROUNDS_APART * turn)
        place_of_round, compute = folder / f"round-{turn}", place.recipe.compute
        return train(copy.deepcopy(model), place.train, ours, folder=place_of_round, masks=masks, compute=compute).model

    return retrain
