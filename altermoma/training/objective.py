"""What training minimises: the loss of boxes and map, with depth supervision and a teacher if asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from altermoma.data.dataset import Sample
from altermoma.models.devices import device_of
from altermoma.models.fusion import FusionModel
from altermoma.models.half import full_precision, widened
from altermoma.models.head import HeadOutputs
from altermoma.models.ranks import Ranks
from altermoma.recipe import TrainRecipe
from altermoma.training.depth import captured_depth_logits, depth_loss
from altermoma.training.distill import Teacher, captured_maps
from altermoma.training.loader import joined
from altermoma.training.losses import LossTerms, detection_loss
from altermoma.training.map_loss import map_term
from altermoma.training.targets import MatchCosts

Objective = Callable[[FusionModel, Sequence[Sample]], LossTerms]
"""Loss of some frames. Where processes share a batch, the losses of all of them are added up (`models.ranks`)."""


@dataclass(frozen=True, kw_only=True)
class DetectionObjective:
    """The loss of boxes and map on the model's device, in float32 whatever precision the networks compute in.

    Attributes:
        recipe: weights of the terms, matching, and the branch that is masked.
        teacher: None without distillation.
    """

    recipe: TrainRecipe
    teacher: Teacher | None = None

    def __call__(self, model: FusionModel, samples: Sequence[Sample]) -> LossTerms:
        recipe, geometry, ranks = self.recipe, model.config.geometry, Ranks.here()
        batch = joined(samples, geometry).to(device_of(model))
        truths = [sample.truth for sample in samples]
        with captured_depth_logits(model) as logits, captured_maps(model) as maps:
            outputs = _widened(model(batch, masked=recipe.masked))
        with full_precision(outputs.heatmap):
            costs = MatchCosts(radius=recipe.match_radius)
            terms = detection_loss(outputs, truths, geometry, costs=costs, ranks=ranks)
            ground = map_term(outputs, batch, ranks)
            if ground is not None:
                terms = terms.plus(map=ground)
            if logits and recipe.depth_weight > 0:
                depth = depth_loss(widened(logits[0]), batch["depth"], geometry, ranks)
                terms = terms.plus(depth=recipe.depth_weight * depth)
        if self.teacher is not None and recipe.distill_weight > 0:
            terms = terms.plus(teacher=recipe.distill_weight * self.teacher.loss(batch, maps, ranks))
        return terms


def detection_objective(recipe: TrainRecipe, teacher: Teacher | None = None) -> DetectionObjective:
    """The objective of a fusion model, with a teacher if there is one."""
    return DetectionObjective(recipe=recipe, teacher=teacher)


def _widened(outputs: HeadOutputs) -> HeadOutputs:
    wide: dict[str, Tensor] = {name: widened(value) for name, value in vars(outputs).items()}
    return dataclasses.replace(outputs, **wide)
