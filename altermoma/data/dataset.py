"""Frames as network inputs: reading, keeping in memory, augmentation, batches in a reproducible order. No torch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from altermoma.data.augment import Augment, move_boxes
from altermoma.data.map_masks import MAP_TRUTH, MapMasks
from altermoma.errors import DataError
from altermoma.frames import Boxes, Calibration, Frame
from altermoma.geometry import Geometry
from altermoma.ops.images import resize_crop
from altermoma.ops.prepare import FramePreparer, dropped_warning
from altermoma.progress import say

_ORDER, _AUGMENT = 0, 1
"""Separate random streams of one seed."""

WARNED_FRAMES = 10
"""Degraded frames whose warnings are printed; of more it is only said that there are."""


class Reader(Protocol):
    """Anything that reads frames by token."""

    def read(self, token: str) -> Frame: ...


T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    error: BaseException


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One frame ready for a model.

    Attributes:
        inputs: arrays named as the graph inputs (see `altermoma.ops.prepare`); where there are masks also MAP_TRUTH.
        truth: boxes to be found, in the (augmented) LiDAR frame; empty in a test set.
        token: sample token.
        warnings: what was degraded in the frame.
    """

    inputs: dict[str, NDArray[np.generic]]
    truth: Boxes
    token: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A frame as it stays in memory: images at network size, everything else as read."""

    images_vhw3: NDArray[np.uint8]
    points_p5: NDArray[np.float32]
    calibration: Calibration
    truth: Boxes
    truth_points_m: NDArray[np.int64]
    warnings: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return self.images_vhw3.nbytes + self.points_p5.nbytes


class FrameDataset:
    """Samples of a list of tokens. What is degraded in a frame is printed once, and carried on with.

    Args:
        reader: where frames come from.
        tokens: sample tokens, in the order of the indices.
        geometry: of the model.
        augment: how `sample` moves frames; None leaves them as they are.
        cache_mib: memory for decoded frames; those read after it is full are read again each time.
        masks: truth of the map head; they are not moved by `augment`, see `check_augmentation`.
    """

    def __init__(
        self,
        reader: Reader,
        tokens: Sequence[str],
        geometry: Geometry,
        augment: Augment | None = None,
        *,
        cache_mib: int = 1024,
        masks: MapMasks | None = None,
    ) -> None:
        if not tokens:
            raise DataError("no frames", expected="at least one sample token", remedy="check the split")
        if masks is not None:
            masks.check(tokens)
        self.reader, self.tokens, self.geometry, self.augment = reader, list(tokens), geometry, augment
        self.masks = masks
        self._budget = cache_mib << 20
        self._kept: dict[int, _Kept] = {}
        self._lock = threading.Lock()
        self._per_thread = threading.local()
        self._warned: set[int] = set()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        """The frame as it is, never augmented."""
        return self._sample(index, None)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """The frame moved by `augment` with the random numbers of `rng`."""
        self.check_augmentation()
        return self._sample(index, self.augment.matrix(rng) if self.augment else None)

    def share_cache(self, count: int) -> None:
        """Leaves a share of the memory for decoded frames, where `count` processes have a copy of this data set."""
        with self._lock:
            self._budget //= count

    def check_augmentation(self) -> None:
        """Raises a DataError where frames would be moved and their masks not."""
        if self.masks is not None and self.augment is not None:
            raise DataError(
                "map masks with augmented frames",
                expected="frames as they are: masks are not moved with them",
                remedy="set finetune.augment = false",
            )

    def batch(self, step: int, *, batch_size: int, seed: int, positions: Sequence[int] | None = None) -> list[Sample]:
        """The training batch of an optimiser step, a pure function of (seed, step): a resumed run repeats it.

        With `positions`, those of its frames alone, as they are in the whole batch.
        """
        indices = batch_indices(len(self), batch_size, seed, step)
        return [
            self.sample(int(indices[position]), np.random.default_rng([seed, _AUGMENT, step, position]))
            for position in (range(batch_size) if positions is None else positions)
        ]

    def _sample(self, index: int, lidar_aug_44: NDArray[np.float64] | None) -> Sample:
        frame = self._frame(range(len(self))[index])
        with_returns = frame.truth_points_m > 0
        truth = frame.truth.select(with_returns)
        if lidar_aug_44 is not None:
            truth = move_boxes(truth, lidar_aug_44)
        preparer = self._preparer()
        dropped = preparer.dropped_voxels
        inputs = preparer.prepare_parts(
            frame.images_vhw3, frame.points_p5, frame.calibration, lidar_aug_44=lidar_aug_44
        )
        dropped = preparer.dropped_voxels - dropped
        if self.masks is not None:
            inputs[MAP_TRUTH] = self.masks.read(self.tokens[index])
        warnings = frame.warnings
        if dropped:
            warnings = (
                *warnings,
                dropped_warning(dropped, self.geometry),
            )
        self._warn(index, warnings)
        return Sample(
            inputs=inputs,
            truth=truth.select(inside(truth, self.geometry)),
            token=self.tokens[index],
            warnings=warnings,
        )

    def _warn(self, index: int, warnings: tuple[str, ...]) -> None:
        with self._lock:
            if not warnings or index in self._warned:
                return
            self._warned.add(index)
            count = len(self._warned)
        if count <= WARNED_FRAMES:
            say(f"warning: frame {self.tokens[index]}: {'; '.join(warnings)}")
        elif count == WARNED_FRAMES + 1:
            say(f"warning: more than {WARNED_FRAMES} frames are degraded; the others are not listed")

    def _preparer(self) -> FramePreparer:
        """A preparer holds scratch memory: one per thread."""
        if not hasattr(self._per_thread, "preparer"):
            self._per_thread.preparer = FramePreparer(self.geometry)
        preparer: FramePreparer = self._per_thread.preparer
        return preparer

    def _frame(self, index: int) -> _Kept:
        with self._lock:
            kept = self._kept.get(index)
        if kept is not None:
            return kept
        frame = self.reader.read(self.tokens[index])
        kept = _Kept(
            images_vhw3=resize_crop(frame.images_vhw3, self.geometry.image),
            points_p5=frame.points_p5,
            calibration=frame.calibration,
            truth=frame.truth if frame.truth is not None else Boxes.empty(),
            truth_points_m=frame.truth_points_m if frame.truth_points_m is not None else np.zeros(0, np.int64),
            warnings=frame.warnings,
        )
        with self._lock:
            if index not in self._kept and kept.nbytes <= self._budget:
                self._kept[index] = kept
                self._budget -= kept.nbytes
        return kept


def inside(boxes: Boxes, geometry: Geometry) -> NDArray[np.bool_]:
    """Which boxes have their centre inside the point range in x and y."""
    low, high = geometry.point_range[:2], geometry.point_range[3:5]
    centre_m2 = boxes.geometry_m9[:, :2]
    result: NDArray[np.bool_] = ((centre_m2 >= low) & (centre_m2 < high)).all(axis=1)
    return result


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Indices [batch_size] into `count` frames of an optimiser step: endless shuffled epochs, cut into batches.

    A pure function of its arguments; a batch may span two epochs.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // count
    orders = {int(e): np.random.default_rng([seed, _ORDER, int(e)]).permutation(count) for e in np.unique(epochs)}
    return np.array([orders[int(e)][p % count] for e, p in zip(epochs, positions, strict=True)], np.int64)


def prefetch(source: Iterable[T], depth: int = 2) -> Iterator[T]:
    """`source`, run in a background thread at most `depth` items ahead.

    Closing the iterator, or leaving its loop, ends the thread. An error in the thread is raised here.
    """
    ready: queue.Queue[T | _Failure | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: T | _Failure | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put(item)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # handed over and raised by the consumer
            put(_Failure(error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()
