"""How sure a difference of mAP is: the same frames, two models, scenes drawn with replacement.

Frames of a scene resemble each other, so that whole scenes are drawn (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993). Matching happens inside a frame: it is done once, and every draw only weighs the frames anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError

DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
"""Between centres on the ground, as detection_cvpr_2019 has them."""

_LEAST = 0.1
"""Recall and precision up to which a curve does not count."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMatches:
    """Detections of one class over all frames, by falling score.

    Attributes:
        hits_nd: bool [detections, distances]: whether it meets a truth that no stronger one of its frame has met.
        frame_n: frame of each detection.
        truths_f: truths of each frame.
    """

    hits_nd: NDArray[np.bool_]
    frame_n: NDArray[np.int64]
    truths_f: NDArray[np.int64]

    def average_precision(self, weight_f: Floats) -> float:
        """Mean over the distances of the AP of nuScenes, each frame counted `weight_f` times; at 0 it is absent."""
        total = float(self.truths_f @ weight_f)
        weight_n = weight_f[self.frame_n]
        # Before the first detection that counts they would be a point of no precision, from which the curve climbs.
        counts_n = weight_n > 0.0
        weight_n = weight_n[counts_n]
        if total == 0.0 or not len(weight_n):
            return 0.0
        met_nd = np.cumsum(self.hits_nd[counts_n] * weight_n[:, None], axis=0)
        precision_nd = met_nd / np.cumsum(weight_n)[:, None]
        at = np.linspace(0.0, 1.0, 101)
        rest = at > _LEAST + 1e-9
        found = [
            np.interp(at, met_nd[:, d] / total, precision_nd[:, d], right=0.0)[rest] for d in range(len(DISTANCES_M))
        ]
        return float(np.mean(np.maximum(np.array(found) - _LEAST, 0.0)) / (1.0 - _LEAST))


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Matches of every class, and the frames that they are of."""

    tokens: tuple[str, ...]
    classes: Mapping[str, ClassMatches]

    def mean_ap(self, weight_f: Floats | None = None) -> float:
        """mAP, 0 to 1, each frame counted `weight_f` times; once where left out."""
        weight = np.ones(len(self.tokens)) if weight_f is None else weight_f
        return float(np.mean([item.average_precision(weight) for item in self.classes.values()]))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """mAP of one model less that of another, in points.

    Attributes:
        error: standard error over draws of scenes.
        low, high: between which 95 % of the draws lie.
    """

    points: float
    error: float
    low: float
    high: float


def match(official: Any, names: Sequence[str]) -> Matches:
    """Matches from a devkit `DetectionEval`, whose boxes are loaded and filtered."""
    tokens = tuple(official.sample_tokens)
    return Matches(tokens=tokens, classes={name: _of_class(official, tokens, name) for name in names})


def _of_class(official: Any, tokens: Sequence[str], name: str) -> ClassMatches:
    scores: list[float] = []
    hits: list[list[bool]] = []
    frames: list[int] = []
    truths = np.zeros(len(tokens), np.int64)
    for frame, token in enumerate(tokens):
        truth = [box for box in official.gt_boxes[token] if box.detection_name == name]
        found = [box for box in official.pred_boxes[token] if box.detection_name == name]
        found.sort(key=lambda box: -box.detection_score)
        truths[frame] = len(truth)
        scores += [box.detection_score for box in found]
        frames += [frame] * len(found)
        hits += _greedy(
            np.array([box.translation[:2] for box in truth]).reshape(-1, 2),
            np.array([box.translation[:2] for box in found]).reshape(-1, 2),
        ).tolist()
    order = np.argsort(-np.array(scores), kind="stable")
    return ClassMatches(
        hits_nd=np.array(hits, np.bool_).reshape(-1, len(DISTANCES_M))[order],
        frame_n=np.array(frames, np.int64)[order],
        truths_f=truths,
    )


def _greedy(truth_t2: Floats, found_n2: Floats) -> NDArray[np.bool_]:
    """The strongest first takes the nearest truth that is left, where it is near enough."""
    hits = np.zeros((len(found_n2), len(DISTANCES_M)), np.bool_)
    if not len(truth_t2):
        return hits
    apart_nt = np.linalg.norm(found_n2[:, None] - truth_t2[None], axis=2)
    for column, limit in enumerate(DISTANCES_M):
        free = np.ones(len(truth_t2), np.bool_)
        for row, apart_t in enumerate(apart_nt):
            nearest = int(np.argmin(np.where(free, apart_t, np.inf)))
            if free[nearest] and apart_t[nearest] < limit:
                hits[row, column] = True
                free[nearest] = False
    return hits


def compare(ours: Matches, theirs: Matches, scenes: Sequence[str], *, draws: int = 1000, seed: int = 0) -> Difference:
    """mAP of `ours` less that of `theirs`, with its standard error over scenes.

    Args:
        ours: of one model.
        theirs: of another, on the same frames.
        scenes: of each frame, in their order.
        draws: how often scenes are drawn.
        seed: of the draws.

    Raises:
        DataError: other frames, or fewer than two scenes.
    """
    if ours.tokens != theirs.tokens or len(scenes) != len(ours.tokens):
        raise DataError("matches of other frames", expected="both models on the same frames")
    names, scene_f = np.unique(np.array(scenes), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{len(names)} scene", expected="at least two: they are what is drawn")
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[scene_f].astype(float)
        found[draw] = 100 * (ours.mean_ap(weight) - theirs.mean_ap(weight))
    low, high = np.percentile(found, [2.5, 97.5])
    return Difference(
        points=100 * (ours.mean_ap() - theirs.mean_ap()),
        error=float(found.std(ddof=1)),
        low=float(low),
        high=float(high),
    )
