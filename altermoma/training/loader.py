"""Training batches, read ahead: the frames of this process for every step of a run, joined before they are needed.

What a batch is depends on seed and step alone, whoever reads it: a thread, or processes of which each reads a whole
batch in turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from altermoma.data.dataset import FrameDataset, Sample, prefetch
from altermoma.errors import AltermomaError, RecipeError
from altermoma.geometry import Geometry
from altermoma.models.batch import FrameBatch, collate
from altermoma.models.ranks import Ranks
from altermoma.recipe import ComputeRecipe, TrainRecipe

AHEAD = 2
"""Batches that wait, in this process and for each reading process."""


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


@dataclass(frozen=True, kw_only=True)
class JoinedSamples(Sequence[Sample]):
    """Samples whose inputs lie side by side already: take them with `joined`, the samples' own are gone."""

    samples: tuple[Sample, ...]
    inputs: FrameBatch

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)


def joined(samples: Sequence[Sample], geometry: Geometry) -> FrameBatch:
    """The graph inputs of some frames side by side."""
    if isinstance(samples, JoinedSamples):
        return samples.inputs
    return collate([sample.inputs for sample in samples], geometry)


Part = Sequence[Sample]
"""Frames that go through the network at once."""


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
    dataset: TrainingSet, recipe: TrainRecipe, compute: ComputeRecipe, steps: range, device: torch.device
) -> Iterator[list[Part]]:
    """The frames of this process for each of `steps`, in the parts they are computed in, read ahead.

    For a GPU they come in pinned memory, from where they are copied while it computes.

    Raises:
        AltermomaError: a frame that cannot be read. See `living_readers` too.
    """
    reading = _Reading(dataset, recipe, steps, shares(recipe.batch_size, Ranks.here(), compute.accumulate))
    source = _by_processes(reading, compute.workers) if compute.workers else (reading[i] for i in range(len(steps)))
    return prefetch((_pinned(parts, device) for parts in source) if device.type == "cuda" else source, AHEAD)


class _Reading(Dataset[list[Part]]):
    """The batches of a run, by number of its remaining steps."""

    def __init__(self, dataset: TrainingSet, recipe: TrainRecipe, steps: range, positions: list[list[int]]) -> None:
        self.dataset, self._recipe, self._steps, self._positions = dataset, recipe, steps, positions

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> list[Part]:
        flat = [position for part in self._positions for position in part]
        # Stand-ins for data sets need not know how to read a part of a batch.
        some = {} if len(flat) == self._recipe.batch_size else {"positions": flat}
        samples = self.dataset.batch(
            self._steps[index], batch_size=self._recipe.batch_size, seed=self._recipe.seed, **some
        )
        size = len(self._positions[0])
        return [self._part(samples[first : first + size]) for first in range(0, len(samples), size)]

    def _part(self, samples: list[Sample]) -> Part:
        if not isinstance(self.dataset, FrameDataset):
            return samples
        inputs = collate([sample.inputs for sample in samples], self.dataset.geometry)
        bare = tuple(dataclasses.replace(sample, inputs={}) for sample in samples)
        return JoinedSamples(samples=bare, inputs=inputs)


class _Caught(Dataset[Any]):
    """The same, with errors as values: a process cannot raise them in another."""

    def __init__(self, reading: _Reading) -> None:
        self.reading = reading

    def __len__(self) -> int:
        return len(self.reading)

    def __getitem__(self, index: int) -> list[Part] | AltermomaError:
        try:
            return self.reading[index]
        except AltermomaError as error:
            return error


def _by_processes(reading: _Reading, workers: int) -> Iterator[list[Part]]:
    """Batches in order, read by processes that are started at once."""
    # Forked, so that tables of a data set are not copied to each; nothing of the GPU is used in them.
    loader = DataLoader(
        _Caught(reading),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_they_are,
        worker_init_fn=_share_memory,
        multiprocessing_context="fork",
    )
    return _raised(iter(loader))


def _raised(source: Iterator[Any]) -> Iterator[list[Part]]:
    for found in source:
        if isinstance(found, AltermomaError):
            raise found
        yield found


@contextlib.contextmanager
def living_readers() -> Iterator[None]:
    """Inside, a reading process that dies is an error of ours; torch raises it wherever this process is just then.

    Raises:
        AltermomaError: it died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise AltermomaError(
            f"a process that reads frames died: {error}",
            expected="compute.workers processes that live as long as the training",
            remedy="if memory ran out, lower compute.workers; run the same command again to continue",
        ) from error


def _share_memory(_: int) -> None:
    info = get_worker_info()
    dataset = info.dataset.reading.dataset if info is not None else None  # type: ignore[attr-defined]
    if info is not None and isinstance(dataset, FrameDataset):
        dataset.share_cache(info.num_workers)


def _as_they_are(batch: Any) -> Any:
    return batch


def _pinned(parts: list[Part], device: torch.device) -> list[Part]:
    return [
        dataclasses.replace(part, inputs=part.inputs.pinned(device)) if isinstance(part, JoinedSamples) else part
        for part in parts
    ]
