"""Head outputs to boxes, outside the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from altermoma.frames import Boxes
from altermoma.geometry import Geometry


def decode(outputs: Mapping[str, NDArray[np.generic]], geometry: Geometry, score_threshold: float = 0.0) -> list[Boxes]:
    """TransFusion's decoding, as mmdet3d's TransFusionBBoxCoder.

    Args:
        outputs: `query_scores` [B, classes, P], `query_labels` [B, P] and the branches `heatmap` (logits), `center`,
            `height`, `dim`, `rot`, `vel`, all [B, ., P]; see altermoma.models.head.HeadOutputs.
        geometry: cell size, range and the range that final centres must lie in.
        score_threshold: boxes at or below it are left out.

    Returns:
        Per frame the boxes in the LiDAR frame, best first.
    """
    labels = np.asarray(outputs["query_labels"]).astype(np.int64)
    arrays = {name: np.asarray(outputs[name], np.float32) for name in ("center", "height", "dim", "rot", "vel")}
    scores_bkp = _sigmoid(np.asarray(outputs["heatmap"], np.float32)) * np.asarray(outputs["query_scores"], np.float32)
    scores = np.take_along_axis(scores_bkp, labels[:, None], axis=1)[:, 0]
    low = np.asarray(geometry.point_range[:2], np.float32)
    metres = arrays["center"].transpose(0, 2, 1) * np.float32(geometry.bev_cell) + low
    yaw = np.arctan2(arrays["rot"][:, 0], arrays["rot"][:, 1])[..., None]
    parts = (metres, arrays["height"].transpose(0, 2, 1), np.exp(arrays["dim"]).transpose(0, 2, 1), yaw)
    boxes = np.concatenate([*parts, arrays["vel"].transpose(0, 2, 1)], axis=-1).astype(np.float32)
    return [
        _frame(*frame, geometry=geometry, threshold=score_threshold)
        for frame in zip(boxes, labels, scores, strict=True)
    ]


def decode_map(outputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32] | None:
    """Probabilities [B, classes, X, Y] of the map head's logits `map`; None for a model without one."""
    return _sigmoid(np.asarray(outputs["map"], np.float32)) if "map" in outputs else None


def _frame(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    geometry: Geometry,
    threshold: float,
) -> Boxes:
    limits = np.asarray(geometry.post_center_range, np.float32)
    keep = (boxes[:, :3] >= limits[:3]).all(axis=1) & (boxes[:, :3] <= limits[3:]).all(axis=1) & (scores > threshold)
    order = np.flatnonzero(keep)[np.argsort(-scores[keep], kind="stable")]
    return Boxes(geometry_m9=boxes[order], labels_m=labels[order], scores_m=scores[order])


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 * (np.tanh(0.5 * x) + 1.0), np.float32)
