from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from training_standins import GEOMETRY, random_truth

from altermoma.frames import Boxes
from altermoma.training.overlap import overlaps_3d
from altermoma.training.targets import (
    MatchCosts,
    class_cost,
    decode_codes,
    encode,
    gaussian_radius,
    heatmap_targets,
    match,
)


def box(x: float, y: float, size: tuple[float, float, float] = (4.0, 2.0, 1.5), yaw: float = 0.0) -> list[float]:
    return [x, y, 0.0, *size, yaw, 0.0, 0.0]


def truth_of(*rows: list[float], labels: list[int] | None = None) -> Boxes:
    count = len(rows)
    return Boxes(
        geometry_m9=np.array(rows, np.float32).reshape(count, 9),
        labels_m=np.array(labels or [0] * count, np.int64),
        scores_m=np.ones(count, np.float32),
    )


@pytest.mark.parametrize(("length", "width", "overlap"), [(5.75, 2.4, 0.1), (15.0, 3.75, 0.1), (3.0, 3.0, 0.7)])
def test_gaussian_radius_solves_its_quadratics(length: float, width: float, overlap: float) -> None:
    radius = gaussian_radius(length, width, overlap)
    # The third case binds; CenterPoint adds its negative b: the mirrored quadratic's root, times a.
    a, b, c = 4 * overlap, -2 * overlap * (length + width), (overlap - 1) * length * width
    roots = np.roots([a, -b, c])
    third = roots.max() * a
    assert radius == pytest.approx(third, rel=1e-9)


def test_gaussian_radius_of_a_square_by_hand() -> None:
    # overlap 0.5, side 2: cases (4 + sqrt(16 - 16/3)) / 2, (8 + sqrt(64 - 32)) / 2, (-4 + sqrt(16 + 16)) / 2
    assert gaussian_radius(2.0, 2.0, 0.5) == pytest.approx((-4 + math.sqrt(32)) / 2)


def test_encode_inverts() -> None:
    truth = random_truth(np.random.default_rng(0), 20)
    boxes = decode_codes(encode(truth, GEOMETRY), GEOMETRY)
    np.testing.assert_allclose(boxes, truth.geometry_m9[:, :7], atol=1e-6)


def test_heatmap_equals_a_cell_by_cell_reference() -> None:
    truths = [random_truth(np.random.default_rng(seed), 15) for seed in (1, 2)]
    result = heatmap_targets(truths, GEOMETRY, 10)
    expected = np.zeros_like(result)
    for frame, truth in enumerate(truths):
        for row, label in zip(truth.geometry_m9.astype(float), truth.labels_m, strict=True):
            cx, cy = int((row[0] + 32) / 0.8), int((row[1] + 32) / 0.8)
            radius = max(2, int(gaussian_radius(row[3] / 0.8, row[4] / 0.8)))
            for x, y in itertools.product(range(80), range(80)):
                if abs(x - cx) <= radius and abs(y - cy) <= radius:
                    value = math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                    expected[frame, label, x, y] = max(expected[frame, label, x, y], value)
    np.testing.assert_allclose(result, expected, atol=1e-7)


def test_heatmap_is_indexed_x_first_and_clipped_at_the_border() -> None:
    heatmap = heatmap_targets([truth_of(box(-31.9, 31.9), box(40.0, 0.0))], GEOMETRY, 10)
    assert heatmap[0, 0, 0, 79] == 1.0
    assert (heatmap == 1).sum() == 1  # the box off the grid draws nothing
    assert (heatmap > 0).sum() == 9  # radius 2, three quarters cut off


def test_class_cost_is_the_focal_loss_as_positive_minus_as_negative() -> None:
    logits = np.array([[0.3, -2.0], [1.2, 0.0]])
    p = 1 / (1 + math.exp(2.0))
    expected = -math.log(p) * 0.25 * (1 - p) ** 2 + math.log(1 - p) * 0.75 * p**2
    assert class_cost(logits, np.array([0]))[1, 0] == pytest.approx(expected)


def reference_iou(a: np.ndarray, b: np.ndarray, cells: int = 1200) -> float:
    """Volume overlap on a fine grid of ground points."""
    axis = np.linspace(-8, 8, cells)
    x, y = np.meshgrid(axis, axis, indexing="ij")

    def ground(box: np.ndarray) -> np.ndarray:
        c, s = math.cos(box[6]), math.sin(box[6])
        along, across = (x - box[0]) * c + (y - box[1]) * s, (y - box[1]) * c - (x - box[0]) * s
        return (np.abs(along) <= box[3] / 2) & (np.abs(across) <= box[4] / 2)

    shared = (ground(a) & ground(b)).sum() * (16 / (cells - 1)) ** 2
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    volume = shared * max(height, 0)
    return float(volume / (a[3:6].prod() + b[3:6].prod() - volume))


def test_overlap_against_a_fine_grid() -> None:
    rng = np.random.default_rng(3)
    a = np.concatenate([rng.uniform(-2, 2, (6, 2)), rng.uniform(-1, 1, (6, 1)), rng.uniform(1, 5, (6, 3))], axis=1)
    a = np.concatenate([a, rng.uniform(-4, 4, (6, 1))], axis=1)
    result = overlaps_3d(a[:3], a[3:])
    for i, j in itertools.product(range(3), range(3)):
        assert result[i, j] == pytest.approx(reference_iou(a[i], a[3 + j]), abs=4e-3)
    np.testing.assert_allclose(np.diag(overlaps_3d(a, a)), 1.0, atol=1e-6)


def test_overlap_by_hand() -> None:
    base = np.array([[0.0, 0, 0, 4, 2, 2, 0]])
    turned = np.array([[0.0, 0, 0, 4, 2, 2, math.pi / 2], [2.0, 0, 1, 4, 2, 2, 0], [0, 9, 0, 4, 2, 2, 0]])
    # crossed: 4 of 8 + 8 - 4 m2; shifted: 2 x 2 x 1 of 16 + 16 - 4 m3; apart: none
    np.testing.assert_allclose(overlaps_3d(base, turned)[0], [4 / 12, 4 / 28, 0.0], atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_match_is_optimal_against_all_permutations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, 4)
    codes = encode(random_truth(rng, 6), GEOMETRY)
    logits = rng.normal(size=(10, 6))
    costs = MatchCosts(classes=0.15, centre=2.0)
    result = match(logits, codes, truth, GEOMETRY, costs)
    predicted = decode_codes(codes, GEOMETRY)
    true = truth.geometry_m9[:, :7].astype(float)

    def cost(query: int, index: int) -> float:
        p = 1 / (1 + math.exp(-logits[truth.labels_m[index], query]))
        focal = -math.log(p) * 0.25 * (1 - p) ** 2 + math.log(1 - p) * 0.75 * p**2
        centre = sum(abs(predicted[query, k] - true[index, k]) / 64 for k in range(2))
        return 0.15 * focal + 2.0 * centre - 0.25 * overlaps_3d(predicted[[query]], true[[index]])[0, 0]

    best = min(sum(cost(q, m) for m, q in enumerate(chosen)) for chosen in itertools.permutations(range(6), 4))
    assert sum(cost(q, m) for q, m in zip(result.queries, result.boxes, strict=True)) == pytest.approx(best)
    assert sorted(result.boxes) == [0, 1, 2, 3]


def test_match_with_more_boxes_than_queries_none_and_a_radius() -> None:
    truth = truth_of(box(0, 0), box(10, 0), box(20, 0))
    codes = encode(truth_of(box(9.5, 0)), GEOMETRY)
    logits = np.zeros((10, 1))
    result = match(logits, codes, truth, GEOMETRY, MatchCosts())
    assert (result.queries.tolist(), result.boxes.tolist()) == ([0], [1])
    assert result.overlaps[0] == pytest.approx(3.5 / 4.5)
    assert len(match(logits, codes, Boxes.empty(), GEOMETRY, MatchCosts()).queries) == 0
    far = truth_of(box(-20, 0))
    assert len(match(logits, codes, far, GEOMETRY, MatchCosts()).queries) == 1
    assert len(match(logits, codes, far, GEOMETRY, MatchCosts(radius=4.0)).queries) == 0


def test_match_survives_numbers_that_are_not_finite() -> None:
    truth = truth_of(box(0, 0))
    codes = np.full((3, 10), np.nan)
    result = match(np.full((10, 3), np.nan), codes, truth, GEOMETRY, MatchCosts())
    assert len(result.queries) == 1
