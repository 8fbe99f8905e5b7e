"""Augmented boxes against corners and finite differences computed the long way."""

from __future__ import annotations

import numpy as np
import pytest

from altermoma.data.augment import Augment, move_boxes
from altermoma.errors import RecipeError
from altermoma.frames import Boxes


def _boxes(count: int = 20, seed: int = 0) -> Boxes:
    rng = np.random.default_rng(seed)
    geometry = np.concatenate(
        [rng.normal(0, 10, (count, 3)), rng.uniform(0.5, 5, (count, 3)), rng.uniform(-9, 9, (count, 1))], axis=1
    )
    geometry = np.concatenate([geometry, rng.normal(0, 5, (count, 2))], axis=1).astype(np.float32)
    return Boxes(geometry_m9=geometry, labels_m=np.arange(count) % 10, scores_m=np.ones(count, np.float32))


def _corners(row: np.ndarray) -> np.ndarray:
    """Eight corners with the front face first, from centre, size and heading."""
    x, y, z, length, width, height, yaw = row[:7].astype(np.float64)
    local = np.array([[i, j, k] for i in (0.5, -0.5) for j in (0.5, -0.5) for k in (0.5, -0.5)])
    local = local * (length, width, height)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    return local @ turn.T + (x, y, z)


@pytest.mark.parametrize("seed", range(12))
def test_moved_boxes_have_moved_corners_and_velocity(seed: int) -> None:
    matrix = Augment(scale=(0.8, 1.2), rotation=3.0).matrix(np.random.default_rng(seed))
    boxes = _boxes(seed=seed)
    moved = move_boxes(boxes, matrix)
    for old, new in zip(boxes.geometry_m9, moved.geometry_m9, strict=True):
        expected = _corners(old) @ matrix[:3, :3].T + matrix[:3, 3]
        ours = _corners(new)
        # A flip swaps left and right corners; front stays front.
        np.testing.assert_allclose(_sorted(ours[:4]), _sorted(expected[:4]), atol=1e-4)
        np.testing.assert_allclose(_sorted(ours[4:]), _sorted(expected[4:]), atol=1e-4)
        later = np.append(old[:2] + 0.5 * old[7:9], old[2]) @ matrix[:3, :3].T + matrix[:3, 3]
        np.testing.assert_allclose(new[:2] + 0.5 * new[7:9], later[:2], atol=1e-4)


def _sorted(points: np.ndarray) -> np.ndarray:
    rounded = np.round(points, 2)
    return points[np.lexsort(rounded.T)]


def test_matrix_stays_within_its_limits() -> None:
    augment = Augment(rotation=0.2, scale=(0.9, 1.1))
    matrices = [augment.matrix(np.random.default_rng(i)) for i in range(200)]
    scales = np.array([abs(np.linalg.det(m[:3, :3])) ** (1 / 3) for m in matrices])
    assert scales.min() > 0.9
    assert scales.max() < 1.1
    assert scales.std() > 0.03
    signs = {(m[0, 0] > 0, m[1, 1] > 0) for m in matrices}
    assert len(signs) == 4
    for matrix in matrices:
        np.testing.assert_array_equal(matrix[3], [0, 0, 0, 1])
        assert abs(np.arctan2(abs(matrix[1, 0]), abs(matrix[0, 0]))) <= 0.2 + 1e-9


def test_unknown_velocity_stays_unknown() -> None:
    boxes = _boxes(2)
    boxes.geometry_m9[0, 7:9] = np.nan
    moved = move_boxes(boxes, Augment().matrix(np.random.default_rng(1)))
    assert np.isnan(moved.geometry_m9[0, 7:9]).all()
    assert np.isfinite(moved.geometry_m9[1]).all()


def test_impossible_scale_is_an_error() -> None:
    with pytest.raises(RecipeError, match="scale"):
        Augment(scale=(1.1, 0.9))
