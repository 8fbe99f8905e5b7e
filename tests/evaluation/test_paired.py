"""mAP from matches against the nuscenes-devkit, weights against repeated frames, and the spread of drawn scenes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from altermoma.data.nuscenes import NuScenesReader
from altermoma.errors import DataError
from altermoma.evaluation.nuscenes_eval import evaluate_matches
from altermoma.evaluation.paired import ClassMatches, Matches, compare
from altermoma.frames import Boxes


def matches_of(seed: int, frames: int = 12, quality: float = 0.7) -> Matches:
    rng = np.random.default_rng(seed)
    classes = {
        name: ClassMatches(
            hits_nd=rng.random((5 * frames, 4)) < quality,
            frame_n=rng.integers(frames, size=5 * frames),
            truths_f=np.full(frames, 8),
        )
        for name in ("car", "bus")
    }
    return Matches(tokens=tuple(map(str, range(frames))), classes=classes)


def test_equals_the_devkit(tiny_nuscenes: Path) -> None:
    reader, rng = NuScenesReader(tiny_nuscenes, "v1.0-mini"), np.random.default_rng(3)
    found = {}
    for token in reader.tokens("custom"):
        truth, _ = reader.truth(token)
        geometry = np.nan_to_num(np.concatenate([truth.geometry_m9, truth.geometry_m9 + 5]))
        geometry[:, :2] += rng.normal(0, 0.8, (len(geometry), 2))
        scores = rng.uniform(0, 1, len(geometry)).astype(np.float32)
        found[token] = Boxes(geometry_m9=geometry, labels_m=np.tile(truth.labels_m, 2), scores_m=scores)
    metrics, matches = evaluate_matches(reader, "custom", found)
    assert 0.05 < metrics.mAP < 0.45
    assert matches.mean_ap() == pytest.approx(metrics.mAP, abs=1e-9)
    for name, item in matches.classes.items():
        assert item.average_precision(np.ones(4)) == pytest.approx(metrics.per_class_ap[name], abs=1e-9)


def test_a_weight_of_two_is_a_frame_twice() -> None:
    matches = matches_of(1)
    weight = np.ones(12)
    weight[3] = 2.0
    for item in matches.classes.values():
        again = np.repeat(np.arange(60), np.where(item.frame_n == 3, 2, 1))
        twin = dataclasses.replace(
            item,
            hits_nd=item.hits_nd[again],
            frame_n=item.frame_n[again],
            truths_f=np.where(np.arange(12) == 3, 16, 8),
        )
        # Two equal scores one after the other: between them the precision is that of half a frame.
        assert item.average_precision(weight) == pytest.approx(twin.average_precision(np.ones(12)), abs=2e-3)


def test_a_weight_of_zero_is_no_frame() -> None:
    for seed in range(8):
        item = matches_of(seed).classes["car"]
        for gone in (item.frame_n[0], item.frame_n[7]):
            stays_f, stays_n = np.arange(12) != gone, item.frame_n != gone
            without = ClassMatches(
                hits_nd=item.hits_nd[stays_n],
                frame_n=(np.cumsum(stays_f) - 1)[item.frame_n[stays_n]],
                truths_f=item.truths_f[stays_f],
            )
            assert item.average_precision(stays_f.astype(float)) == without.average_precision(np.ones(11))


def test_the_first_precision_holds_from_recall_0() -> None:
    # The stronger detection's frame does not count: what is left is one hit of one truth, precision 1 at any recall.
    item = ClassMatches(
        hits_nd=np.array([[False] * 4, [True] * 4]), frame_n=np.array([0, 1]), truths_f=np.array([1, 1])
    )
    assert item.average_precision(np.array([0.0, 1.0])) == pytest.approx(1.0)


def test_a_model_does_not_differ_from_itself() -> None:
    found = compare(matches_of(0), matches_of(0), [str(i // 3) for i in range(12)])
    assert (found.points, found.error, found.low, found.high) == (0, 0, 0, 0)


def test_differences_are_found_and_their_error_falls_with_the_scenes() -> None:
    errors = []
    for scenes in (6, 96):
        ours, theirs = matches_of(0, scenes, 0.8), matches_of(1, scenes, 0.4)
        found = compare(ours, theirs, [str(i) for i in range(scenes)], draws=300)
        assert found.low < found.points < found.high
        errors.append(found.error)
    assert found.low > 0
    assert errors[1] < errors[0]


@pytest.mark.parametrize("scenes", [["a"] * 12, ["a", "b"]])
def test_too_little_to_draw_from(scenes: list[str]) -> None:
    with pytest.raises(DataError, match=r"1 scene|other frames"):
        compare(matches_of(0), matches_of(1), scenes)
