"""What calibration remembers of a tensor: extremes and a histogram that grows, however many frames pass by."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from altermoma.calib.histogram_kernel import count_into, extremes
from altermoma.errors import DataError, StorageError
from altermoma.storage import atomic_path

BINS = 4096
"""Over both signs: 16 bins for each of the 255 steps of a range that the histogram just holds."""


@dataclass(kw_only=True, eq=False)
class TensorStatistics:
    """Of all values of one tensor so far.

    Attributes:
        low, high: smallest and largest value.
        reach: the histogram covers [-reach, reach]; 0 while all values were zero.
        counts_b: values per bin, int64 [BINS].
        frames: frames that the values came from.
        zeros: values seen while `reach` was 0.
    """

    low: float = 0.0
    high: float = 0.0
    reach: float = 0.0
    counts_b: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    frames: int = 0
    zeros: int = 0

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        """Takes in the values of one frame.

        Raises:
            DataError: NaN or infinity among them.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        self.frames += 1
        if not flat.size:
            return
        low, high = (float(value) for value in extremes(flat))
        if not np.isfinite([low, high]).all():
            raise DataError(
                f"tensor {name} holds NaN or infinity",
                expected="finite activations in every calibration frame",
                remedy="look at the frame's data, or at the checkpoint: fp32 evaluation must give sound boxes first",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest == 0.0 and self.reach == 0.0:
            self.zeros += flat.size
            return
        self._grow(largest)
        count_into(flat, self.reach, self.counts_b)

    def _grow(self, largest: float) -> None:
        """Doubles the reach until it holds `largest`: two bins become one, so that no value is counted anew."""
        if self.reach == 0.0:
            self.reach = max(largest, float(np.finfo(np.float32).tiny))
            self.counts_b[BINS // 2] += self.zeros
        while self.reach < largest:
            pairs = self.counts_b.reshape(-1, 2).sum(axis=1)
            self.counts_b = np.zeros(BINS, np.int64)
            self.counts_b[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.reach *= 2.0

    def centres_b(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        width = 2.0 * self.reach / BINS
        centres: NDArray[np.float64] = (np.arange(BINS) + 0.5) * width - self.reach
        return centres


def write_statistics(path: Path, found: dict[str, TensorStatistics], done: tuple[str, ...]) -> None:
    """Keeps statistics and the frames they are of as one npz; written as a whole or not at all."""
    names = list(found)
    numbers = [[s.low, s.high, s.reach, s.frames, s.zeros] for s in found.values()]
    with atomic_path(path) as draft, draft.open("wb") as stream:
        np.savez_compressed(
            stream,
            names=np.array(names, np.str_),
            numbers=np.array(numbers, np.float64).reshape(-1, 5),
            counts=np.stack([s.counts_b for s in found.values()]) if found else np.zeros((0, BINS), np.int64),
            done=np.array(done, np.str_),
        )


def read_statistics(path: Path) -> tuple[dict[str, TensorStatistics], tuple[str, ...]]:
    """What `write_statistics` kept.

    Raises:
        StorageError: a damaged file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            names, numbers, counts, done = (kept[key] for key in ("names", "numbers", "counts", "done"))
    except Exception as error:  # numpy and zipfile raise many kinds
        raise StorageError(f"{path} is damaged: {error}", remedy="delete it: the frames are run again") from error
    found = {
        str(name): TensorStatistics(
            low=float(row[0]),
            high=float(row[1]),
            reach=float(row[2]),
            counts_b=bins,
            frames=int(row[3]),
            zeros=int(row[4]),
        )
        for name, row, bins in zip(names, numbers, counts, strict=True)
    }
    return found, tuple(map(str, done))
