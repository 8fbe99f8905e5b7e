"""Map IoU against counting cell by cell."""

from __future__ import annotations

import numpy as np
import pytest

from altermoma.errors import DataError
from altermoma.evaluation.map_eval import THRESHOLDS, MapIou
from altermoma.frames import MAP_CLASSES


def naive(frames: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
    """IoU per class and threshold: tp / (tp + fp + fn) over all cells of all frames."""
    found = {}
    for index, name in enumerate(MAP_CLASSES):
        found[name] = []
        for threshold in (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65):
            tp = fp = fn = 0
            for scores, truth in frames:
                for score, true in zip(scores[index].ravel().tolist(), truth[index].ravel().tolist(), strict=True):
                    tp += score >= threshold and true
                    fp += score >= threshold and not true
                    fn += score < threshold and true
            found[name].append(tp / (tp + fp + fn) if tp + fp + fn else 0.0)
    return found


def test_equals_counting() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(3):
        truth = rng.random((6, 9, 7)) < np.array([0.5, 0.1, 0.3, 0.02, 0.2, 0.0])[:, None, None]
        scores = np.clip(truth * 0.3 + rng.random((6, 9, 7)) * 0.7, 0, 1).astype(np.float32)
        scores[5] = 0.1  # a class that is neither there nor found
        frames.append((scores, truth))
    counter = MapIou()
    for scores, truth in frames:
        counter.add(scores, truth)
    result, expected = counter.scores(), naive(frames)
    assert result.by_threshold.keys() == expected.keys()
    for name, row in expected.items():
        assert result.by_threshold[name] == pytest.approx(row)
        assert result.best[name] == pytest.approx(max(row))
    assert result.mean == pytest.approx(np.mean([max(row) for row in expected.values()]))
    assert result.best["divider"] == 0.0
    best = [np.argmax(result.by_threshold[name]) for name in MAP_CLASSES[:5]]
    assert len(set(best)) > 1, "classes must differ in their best threshold"
    assert len(THRESHOLDS) == 7


def test_a_score_at_the_threshold_counts() -> None:
    counter = MapIou(("road",))
    counter.add(np.full((1, 1, 1), 0.65, np.float32), np.ones((1, 1, 1), bool))
    assert counter.scores().by_threshold["road"] == (1.0,) * 7


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="with 6 classes"):
        MapIou().add(np.zeros((5, 2, 2), np.float32), np.zeros((5, 2, 2), bool))
    with pytest.raises(DataError, match=r"truth of shape \[6, 3, 2\]"):
        MapIou().add(np.zeros((6, 2, 2), np.float32), np.zeros((6, 3, 2), bool))
