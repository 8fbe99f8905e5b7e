"""What the scores are made of: how many frames, in how large batches, read when they are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from altermoma.data.dataset import FrameDataset, batch_indices
from altermoma.deploy.targets import load_target
from altermoma.frames import Boxes
from altermoma.geometry import Geometry
from altermoma.progress import say
from altermoma.pruning.two_four_rules import CHANNEL_STEP
from altermoma.recipe import PruneRecipe, Recipe
from altermoma.workflow.place import Workplace

if TYPE_CHECKING:
    from altermoma.models.batch import FrameBatch

LIDAR_STEP = 8
"""Widths of the sparse encoder are multiples of this where the recipe leaves it open: gathered rows are short."""
FULL_SIZE_PIXELS = 100_000
"""Pixels of one picture from which a model counts as one of full size (256 x 704 are 180 224)."""

SMALL = {"score_batches": 8, "reactivation_batches": 8, "reri_batches": 4, "batch_size": 2}
FULL = {"score_batches": 2, "reactivation_batches": 2, "reri_batches": 1, "batch_size": 1}
"""Scores of a full-size model take ten minutes of two cores and 9 GiB from these, and an hour from SMALL."""


def with_open_keys_filled(recipe: Recipe) -> Recipe:
    """The recipe with what its [prune] leaves open, and prints what that is.

    The channel steps are those of target and precision, and keep layers eligible for 2:4 where that is asked for;
    batches and their size go by the size of the model.
    """
    prune = recipe.prune
    filled: dict[str, int] = {}
    least = CHANNEL_STEP if recipe.engine.sparsity == "2:4" else 1
    if not prune.channel_step:
        filled["channel_step"] = max(load_target(recipe.engine.target).step(recipe.engine.precision), least)
    if not prune.lidar_channel_step:
        filled["lidar_channel_step"] = max(LIDAR_STEP, least)
    if not all(getattr(prune, key) for key in SMALL):
        image = Workplace(recipe).geometry.image
        sizes = FULL if image.height * image.width >= FULL_SIZE_PIXELS else SMALL
        filled |= {key: size for key, size in sizes.items() if not getattr(prune, key)}
    prune = dataclasses.replace(prune, **filled)  # type: ignore[arg-type]  # whole numbers all
    if filled and prune.amount > 0:
        say("[prune] left open, so: " + ", ".join(f"{key} = {value}" for key, value in filled.items()))
    return dataclasses.replace(recipe, prune=prune)


def scoring_batches(place: Workplace, recipe: PruneRecipe | None = None) -> ScoringBatches:
    """Training frames as they are, as many as the method takes, in an order fixed by the seed of `recipe`.

    Args:
        place: data and geometry.
        recipe: the place's [prune] where left out.
    """
    from altermoma.pruning.methods.choose import batches_of

    recipe = recipe or place.recipe.prune
    count = len(place.train)
    indices = [batch_indices(count, recipe.batch_size, recipe.seed, step) for step in range(batches_of(recipe))]
    return ScoringBatches(dataset=place.train, geometry=place.geometry, indices=tuple(indices))


@dataclass(frozen=True, kw_only=True)
class ScoringBatches(Sequence["tuple[FrameBatch, list[Boxes]]"]):
    """Batches that are joined anew each time they are asked for, so that memory holds one of them.

    Attributes:
        dataset: frames.
        geometry: of the model.
        indices: frames of each batch.
    """

    dataset: FrameDataset
    geometry: Geometry
    indices: tuple[NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, which: int) -> tuple[FrameBatch, list[Boxes]]: ...

    @overload
    def __getitem__(self, which: slice) -> ScoringBatches: ...

    def __getitem__(self, which: int | slice) -> tuple[FrameBatch, list[Boxes]] | ScoringBatches:
        from altermoma.models.batch import collate

        if isinstance(which, slice):
            return dataclasses.replace(self, indices=self.indices[which])
        samples = [self.dataset[int(index)] for index in self.indices[which]]
        return collate([sample.inputs for sample in samples], self.geometry), [sample.truth for sample in samples]
