"""Mean IoU of BEV map segmentation, as mit-han-lab's BEVFusion evaluates it on nuScenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError
from altermoma.frames import MAP_CLASSES

THRESHOLDS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
"""Probabilities at which a cell starts to count as of the class; each class is given its best one."""


@dataclass(frozen=True, kw_only=True)
class MapScores:
    """IoU over all frames.

    Attributes:
        mean: over classes of the IoU at each class's best threshold; the paper's mIoU as a fraction.
        best: that IoU by class.
        by_threshold: IoU by class, in the order of THRESHOLDS.
    """

    mean: float
    best: Mapping[str, float]
    by_threshold: Mapping[str, tuple[float, ...]]


class MapIou:
    """Counts cells frame by frame: all frames share one intersection and one union per class and threshold."""

    def __init__(self, classes: tuple[str, ...] = MAP_CLASSES) -> None:
        self.classes = classes
        self._both = np.zeros((len(classes), len(THRESHOLDS)), np.int64)
        self._either = np.zeros_like(self._both)

    def add(self, scores_cxy: NDArray[np.floating[Any]], truth_cxy: NDArray[np.bool_]) -> None:
        """One frame: probabilities, and whether the cell is of the class.

        Raises:
            DataError: shapes differ, or another number of classes.
        """
        if scores_cxy.shape != truth_cxy.shape or len(scores_cxy) != len(self.classes):
            raise DataError(
                f"map scores of shape {list(scores_cxy.shape)} and truth of shape {list(truth_cxy.shape)}",
                expected=f"the same, with {len(self.classes)} classes",
            )
        scores, truth = scores_cxy.reshape(len(self.classes), -1), truth_cxy.reshape(len(self.classes), -1) != 0
        for index, threshold in enumerate(THRESHOLDS):
            found = scores >= np.float32(threshold)
            self._both[:, index] += (found & truth).sum(axis=1)
            self._either[:, index] += (found | truth).sum(axis=1)

    def scores(self) -> MapScores:
        """What was counted so far; a class that is neither there nor found scores 0, as in the reference."""
        iou = self._both / np.maximum(self._either, 1)
        best = iou.max(axis=1)
        return MapScores(
            mean=float(best.mean()),
            best=dict(zip(self.classes, best.tolist(), strict=True)),
            by_threshold={name: tuple(row) for name, row in zip(self.classes, iou.tolist(), strict=True)},
        )
