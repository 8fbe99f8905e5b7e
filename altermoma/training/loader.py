"""Training batches, read ahead: the frames of this process, for every step of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from altermoma.data.dataset import Sample, prefetch
from altermoma.errors import RecipeError
from altermoma.geometry import Geometry
from altermoma.models.batch import FrameBatch, collate
from altermoma.models.ranks import Ranks
from altermoma.recipe import TrainRecipe


class TrainingSet(Protocol):
    """Frames in batches whose content, augmentation included, is a pure function of (seed, step): see FrameDataset."""

    @property
    def tokens(self) -> Sequence[str]:
        """Names of the frames: a run is tied to them."""
        ...

    def __len__(self) -> int: ...

    def batch(
        self, step: int, *, batch_size: int, seed: int, positions: Sequence[int] | None = None
    ) -> list[Sample]: ...


def shares(batch_size: int, ranks: Ranks, parts: int) -> list[list[int]]:
    """Positions in the batch that this process computes, part by part.

    A part is a run of the batch that is split among the processes: with as many parts, any number of processes sees
    the same frames together.

    Raises:
        RecipeError: the batch cannot be split evenly.
    """
    size, rest = divmod(batch_size, ranks.size * parts)
    if rest or not size:
        raise RecipeError(
            f"finetune.batch_size = {batch_size} among {ranks.size} processes in {parts} parts each",
            expected=f"a multiple of {ranks.size * parts}",
            remedy="change finetune.batch_size, compute.accumulate or the number of processes",
        )
    starts = [(part * ranks.size + ranks.rank) * size for part in range(parts)]
    return [list(range(start, start + size)) for start in starts]


def training_batches(
    dataset: TrainingSet, recipe: TrainRecipe, steps: range, ranks: Ranks, parts: int
) -> Iterator[list[list[Sample]]]:
    """The frames of this process for each of `steps`, in the parts they are computed in; read in a thread ahead."""
    positions = shares(recipe.batch_size, ranks, parts)
    flat = None if ranks.size == 1 else [position for part in positions for position in part]

    def read(step: int) -> list[list[Sample]]:
        if flat is None:
            samples = dataset.batch(step, batch_size=recipe.batch_size, seed=recipe.seed)
        else:
            samples = dataset.batch(step, batch_size=recipe.batch_size, seed=recipe.seed, positions=flat)
        size = len(positions[0])
        return [samples[first : first + size] for first in range(0, len(samples), size)]

    return prefetch(read(step) for step in steps)


def joined(samples: Sequence[Sample], geometry: Geometry) -> FrameBatch:
    """The graph inputs of some frames side by side."""
    return collate([sample.inputs for sample in samples], geometry)
