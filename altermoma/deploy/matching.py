"""Which of two lists of boxes or proposals are the same ones, and whether only rounding tells two choices apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.frames import Boxes

MATCH_RADIUS_M = 0.5
"""Largest distance of the centres of matching boxes, metres."""

MATCH_RADIUS_CELLS = 1.0
"""Largest distance of the centres of matching proposals, in units of the position tensor (BEV cells)."""

LOST_SHARE = 0.1
"""Share of the proposals' score that may be lost to near ties."""

Arrays = Mapping[str, NDArray[Any]]
Indices = NDArray[np.int64]


def match_boxes(reference: Boxes, found: Boxes, radius_m: float = MATCH_RADIUS_M) -> tuple[Indices, Indices]:
    """Pairs boxes of one class by nearest centre within `radius_m`, best reference scores first; each used once."""
    free = np.ones(len(found), bool)
    pairs: list[tuple[int, int]] = []
    for i in np.argsort(-reference.scores_m, kind="stable"):
        distance = np.linalg.norm(found.geometry_m9[:, :3] - reference.geometry_m9[i, :3], axis=1)
        distance[~free | (found.labels_m != reference.labels_m[i])] = np.inf
        if len(distance) and distance.min() <= radius_m:
            best = int(distance.argmin())
            free[best] = False
            pairs.append((int(i), best))
    left, right = np.asarray(pairs, np.int64).reshape(-1, 2).T
    return left, right


@dataclass(frozen=True, kw_only=True)
class Unordered:
    """Outputs whose last dimension lists proposals in no fixed order; these tell which belong together.

    Attributes:
        labels: [1, P], class of each.
        position: [1, 2, P], centre in cells.
        score: [1, K, P], heatmap score of every class at the proposal's cell.
    """

    labels: str
    position: str
    score: str


HEAD = Unordered(labels="query_labels", position="center", score="query_scores")
"""How the head's outputs are called in every stage contract."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Proposals of an expected and an actual list that are the same.

    Attributes:
        left, right: their indices in the expected and in the actual list.
        matched: share of the expected score that they hold.
        above_cut: how far the strongest proposal without a partner, on either side, lies above the weakest one of its
            list, over the largest score. The list is cut off there: a proposal that rounding moves across the cut has
            a score within the rounding of it.
    """

    left: Indices
    right: Indices
    matched: float
    above_cut: float


def only_ties_lost(matched: float, above_cut: float, tolerance: float) -> bool:
    """Whether all that a `Pairing` lost are ties: scores within the tolerance of the cut, and few of them."""
    return above_cut <= tolerance and 1 - matched <= max(LOST_SHARE, tolerance)


def pair_proposals(expected: Arrays, actual: Arrays, how: Unordered) -> Pairing:
    """Pairs proposals of one frame that have one label and lie within `MATCH_RADIUS_CELLS`, the most alike first.

    Args:
        expected: outputs of a head by name; those of the shape [1, C, P] make up the likeness.
        actual: the same of another runtime.
        how: which outputs tell proposals apart.
    """
    labels, others = expected[how.labels][0], actual[how.labels][0]
    unlike_pq = np.zeros((len(labels), len(others)))
    for name, wanted in expected.items():
        if wanted.ndim == 3 and wanted.shape[-1] == len(labels):
            scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-12)
            unlike_pq += np.abs(_rows(wanted)[:, None] - _rows(actual[name])[None]).mean(axis=2) / scale
    apart_pq = np.linalg.norm(_rows(expected[how.position])[:, None] - _rows(actual[how.position])[None], axis=2)
    possible = (labels[:, None] == others[None]) & (apart_pq <= MATCH_RADIUS_CELLS)
    unlike_pq[~possible] = np.inf
    left, right = _one_to_one(np.nan_to_num(unlike_pq, nan=np.inf, posinf=np.inf))
    wanted, found = _own_scores(expected, how), _own_scores(actual, how)
    return Pairing(
        left=left,
        right=right,
        matched=float(wanted[left].sum() / max(wanted.sum(), 1e-30)),
        above_cut=max(_above_cut(wanted, left), _above_cut(found, right)),
    )


def _rows(tensor_1cp: NDArray[Any]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = tensor_1cp[0].T.astype(np.float64)
    return rows


def _own_scores(outputs: Arrays, how: Unordered) -> NDArray[np.float64]:
    """The score that each proposal was listed for: that of its class."""
    labels, scores_kp = outputs[how.labels][0].astype(np.int64), outputs[how.score][0].astype(np.float64)
    known = (labels >= 0) & (labels < len(scores_kp))
    own: NDArray[np.float64] = np.where(known, scores_kp[labels * known, np.arange(len(labels))], np.inf)
    return own


def _above_cut(scores_p: NDArray[np.float64], paired: Indices) -> float:
    alone = np.delete(scores_p, paired)
    if not alone.size:
        return 0.0
    if not np.isfinite(scores_p).all():
        return float("inf")
    return float((alone.max() - scores_p.min()) / max(scores_p.max(), 1e-30))


def _one_to_one(distance_pq: NDArray[np.float64]) -> tuple[Indices, Indices]:
    """Pairs rows and columns, nearest first, each used once; infinite distances stay alone."""
    rows, columns = np.unravel_index(np.argsort(distance_pq, axis=None, kind="stable"), distance_pq.shape)
    free_row, free_column = (np.ones(size, bool) for size in distance_pq.shape)
    chosen: list[tuple[int, int]] = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if not np.isfinite(distance_pq[row, column]):
            break
        if free_row[row] and free_column[column]:
            free_row[row] = free_column[column] = False
            chosen.append((row, column))
    left, right = np.asarray(chosen, np.int64).reshape(-1, 2).T
    return left, right


@dataclass(frozen=True, kw_only=True)
class ChoiceDrift:
    """How far one choice is from another.

    Attributes:
        needed: the least rounding of single scores that makes the choice right; infinite if none does.
        mean: the sum of what every entry needs by itself, over the number of proposals.
        cosine: of both lists of scores, highest first.
        largest: of torch's chosen scores.
    """

    needed: float
    mean: float
    cosine: float
    largest: float


def choice_drift(
    chosen_p: NDArray[Any], scores_n: NDArray[Any], margins_n: NDArray[Any], found_p: NDArray[Any]
) -> ChoiceDrift:
    """Compares the entries that a graph chose with torch's.

    An entry is rightly chosen if it is a local maximum, and one is rightly left out if it is none, or if no score below
    its own was chosen. Two scores are involved each time, so that the rounding needed is half of what is missing.

    Args:
        chosen_p: entries that torch chose.
        scores_n: torch's scores.
        margins_n: how far each is above its neighbours; not above zero where it is no local maximum.
        found_p: entries that the graph chose.
    """
    chosen, found, scores, margins = chosen_p.ravel(), found_p.ravel(), scores_n.ravel(), margins_n.ravel()
    largest = float(scores[chosen].max(initial=0.0))
    sound = len(np.unique(found)) == len(found) == len(chosen) and bool(((found >= 0) & (found < len(scores))).all())
    if not sound:
        return ChoiceDrift(needed=np.inf, mean=np.inf, cosine=0.0, largest=largest)
    others = np.ones(len(scores), bool)
    others[found] = False
    missed = np.minimum(margins[others], scores[others] - scores[found].min(initial=np.inf))
    steps = np.concatenate([-margins[found], missed]).clip(min=0.0).astype(np.float64) / 2
    before, after = (np.sort(scores[entries].astype(np.float64)) for entries in (chosen, found))
    norm = float(np.linalg.norm(before) * np.linalg.norm(after))
    return ChoiceDrift(
        needed=float(np.nan_to_num(steps.max(initial=0.0), nan=np.inf, posinf=np.inf)),
        mean=float(np.nan_to_num(steps.sum() / max(len(chosen), 1), nan=np.inf, posinf=np.inf)),
        cosine=float(before @ after) / norm if norm > 0 else float(not before.any() and not after.any()),
        largest=largest,
    )
