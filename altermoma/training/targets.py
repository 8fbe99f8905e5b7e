"""What a TransFusion head is trained towards: heatmaps, box codes and the matching of queries to true boxes.

Host side, numpy: small arrays, and the assignment needs scipy anyway. Conventions are those of TransFusion
(Bai et al. 2022) as configured by BEVFusion for nuScenes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.frames import Boxes
from altermoma.geometry import Geometry
from altermoma.training.overlap import overlaps_3d

CODE_SIZE = 10
"""Box code: centre x, y (BEV cells), centre z (m), log length, width, height, sin yaw, cos yaw, velocity x, y (m/s)."""

MIN_OVERLAP = 0.1
MIN_RADIUS = 2
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
_COST_EPS = 1e-12
_UNMATCHABLE = 1e6
_LOG_DIM_LIMIT = 5.0

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MatchCosts:
    """Weights of the assignment cost, as BEVFusion configures them.

    Attributes:
        classes: focal cost of naming the true class.
        centre: L1 distance of BEV centres, each axis normalised by the point range.
        overlap: minus the 3D IoU.
        radius: metres; a match farther away is dropped, because regressing a box many cells away teaches nothing and
            its gradient drowns the rest while the heatmap is still untrained. 0 keeps every match, as TransFusion does.
    """

    classes: float = 0.15
    centre: float = 0.25
    overlap: float = 0.25
    radius: float = 0.0


def gaussian_radius(length: float, width: float, min_overlap: float = MIN_OVERLAP) -> float:
    """Radius, in the unit of the box, within which CornerNet-style shifts keep `min_overlap` of IoU.

    The three cases and their quadratics are CenterPoint's, including its (b + root) / 2 for every case, so that
    heatmaps equal those that BEVFusion's published weights were trained with.
    """
    total, area = length + width, length * width
    cases = (
        (1.0, total, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, 2 * total, area * (1 - min_overlap)),
        (4 * min_overlap, -2 * min_overlap * total, area * (min_overlap - 1)),
    )
    return min((b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in cases)


def encode(truth: Boxes, geometry: Geometry) -> Array:
    """Box codes [M, 10] of true boxes; velocities stay NaN where unknown."""
    boxes_m9 = truth.geometry_m9.astype(np.float64)
    codes = np.empty((len(boxes_m9), CODE_SIZE))
    codes[:, 0:2] = (boxes_m9[:, 0:2] - geometry.point_range[:2]) / geometry.bev_cell
    codes[:, 2] = boxes_m9[:, 2]
    codes[:, 3:6] = np.log(boxes_m9[:, 3:6])
    codes[:, 6], codes[:, 7] = np.sin(boxes_m9[:, 6]), np.cos(boxes_m9[:, 6])
    codes[:, 8:10] = boxes_m9[:, 7:9]
    return codes


def decode_codes(codes_n10: Array, geometry: Geometry) -> Array:
    """Boxes [N, 7] in metres from box codes; log dimensions are clipped so that an untrained head cannot overflow."""
    boxes = np.empty((len(codes_n10), 7))
    boxes[:, 0:2] = codes_n10[:, 0:2] * geometry.bev_cell + np.asarray(geometry.point_range[:2])
    boxes[:, 2] = codes_n10[:, 2]
    boxes[:, 3:6] = np.exp(np.clip(codes_n10[:, 3:6], -_LOG_DIM_LIMIT, _LOG_DIM_LIMIT))
    boxes[:, 6] = np.arctan2(codes_n10[:, 6], codes_n10[:, 7])
    return boxes


def heatmap_targets(truths: list[Boxes], geometry: Geometry, classes: int) -> NDArray[np.float32]:
    """Dense heatmap [B, classes, X, Y]: 1 at the cell of a box centre, a Gaussian around it, the larger where two meet.

    Boxes whose centre is off the grid, or without extent, are left out.
    """
    shape = geometry.bev_shape
    heatmap_bcxy = np.zeros((len(truths), classes, *shape), np.float32)
    for maps_cxy, truth in zip(heatmap_bcxy, truths, strict=True):
        codes = encode(truth, geometry)
        cells = np.floor(codes[:, :2]).astype(np.int64)
        sizes = truth.geometry_m9[:, 3:5].astype(np.float64) / geometry.bev_cell
        for (x, y), (length, width), label in zip(cells, sizes, truth.labels_m, strict=True):
            if 0 <= x < shape[0] and 0 <= y < shape[1] and length > 0 and width > 0:
                radius = max(MIN_RADIUS, int(gaussian_radius(length, width)))
                _draw(maps_cxy[label], int(x), int(y), radius)
    return heatmap_bcxy


def _draw(map_xy: NDArray[np.float32], x: int, y: int, radius: int) -> None:
    low_x, low_y = max(x - radius, 0), max(y - radius, 0)
    window = map_xy[low_x : x + radius + 1, low_y : y + radius + 1]
    dx = np.arange(low_x, low_x + window.shape[0])[:, None] - x
    dy = np.arange(low_y, low_y + window.shape[1])[None, :] - y
    sigma = (2 * radius + 1) / 6
    np.maximum(window, np.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)), out=window, casting="same_kind")


def class_cost(logits_cp: Array, labels_m: NDArray[np.int64]) -> Array:
    """Focal cost [P, M] of query p naming the class of box m: its loss as a positive minus its loss as a negative."""
    score_pm = (1.0 / (1.0 + np.exp(-np.clip(logits_cp, -60.0, 60.0))))[labels_m].T
    positive = -np.log(score_pm + _COST_EPS) * FOCAL_ALPHA * (1 - score_pm) ** FOCAL_GAMMA
    negative = -np.log(1 - score_pm + _COST_EPS) * (1 - FOCAL_ALPHA) * score_pm**FOCAL_GAMMA
    cost_pm: Array = positive - negative
    return cost_pm


@dataclass(frozen=True, kw_only=True)
class Matching:
    """One frame's assignment: query `queries[k]` is responsible for true box `boxes[k]`, 3D IoU `overlaps[k]`."""

    queries: NDArray[np.int64]
    boxes: NDArray[np.int64]
    overlaps: Array


def match(logits_cp: Array, codes_p10: Array, truth: Boxes, geometry: Geometry, costs: MatchCosts) -> Matching:
    """Hungarian assignment of true boxes to queries, at most one each way.

    Args:
        logits_cp: class logits [classes, P] of the queries.
        codes_p10: predicted box codes [P, 10].
        truth: M true boxes.
        geometry: grid of the codes.
        costs: weights of the parts.
    """
    from scipy.optimize import linear_sum_assignment

    if len(truth) == 0:
        nothing = np.zeros(0, np.int64)
        return Matching(queries=nothing, boxes=nothing, overlaps=np.zeros(0))
    predicted = decode_codes(codes_p10, geometry)
    true = truth.geometry_m9[:, :7].astype(np.float64)
    low, high = np.asarray(geometry.point_range[:2]), np.asarray(geometry.point_range[3:5])
    offsets_pm2 = predicted[:, None, :2] - true[None, :, :2]
    iou_pm = overlaps_3d(predicted, true)
    cost_pm = (
        costs.classes * class_cost(logits_cp, truth.labels_m)
        + costs.centre * np.abs(offsets_pm2 / (high - low)).sum(axis=-1)
        - costs.overlap * iou_pm
    )
    too_far = np.linalg.norm(offsets_pm2, axis=-1) > costs.radius if costs.radius > 0 else np.zeros(iou_pm.shape, bool)
    # Numbers that are not finite must not stop the matching: the loss they lead to is reported with its step.
    cost_pm = np.where(too_far, _UNMATCHABLE, np.nan_to_num(cost_pm, nan=_UNMATCHABLE, posinf=_UNMATCHABLE))
    queries, boxes = linear_sum_assignment(cost_pm)
    near = ~too_far[queries, boxes]
    queries, boxes = queries[near], boxes[near]
    return Matching(queries=queries, boxes=boxes, overlaps=np.nan_to_num(iou_pm[queries, boxes]))
