"""The comparison itself: what it forgives and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from altermoma.errors import ExportError
from altermoma.export.contract import StageContract, TensorSpec, Unordered
from altermoma.export.parity import Arrays, compare_stage, raise_on_drift


def specs(*names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=n, dtype="float32", shape=(1,), meaning="", unit="") for n in names)


HEAD = StageContract(
    name="head",
    meaning="",
    inputs=(),
    outputs=specs("labels", "position", "score", "height"),
    unordered=Unordered(labels="labels", position="position", score="score"),
)
PLAIN = StageContract(name="plain", meaning="", inputs=(), outputs=specs("y"))


def proposals(count: int = 20, seed: int = 0) -> Arrays:
    """Positions at least two cells apart."""
    rng = np.random.default_rng(seed)
    return {
        "labels": rng.integers(0, 3, (1, count)).astype(np.int32),
        "position": np.stack([np.arange(count) * 2.5, rng.uniform(0, 80, count)])[None].astype(np.float32),
        "score": rng.uniform(0.1, 1, (1, 3, count)).astype(np.float32),
        "height": rng.normal(size=(1, 1, count)).astype(np.float32),
    }


def shuffled(tensors: Arrays, order: np.ndarray) -> Arrays:  # type: ignore[type-arg]
    return {name: array[..., order] for name, array in tensors.items()}


def test_order_of_proposals_does_not_matter() -> None:
    expected = proposals()
    order = np.random.default_rng(1).permutation(20)
    found = compare_stage("stage", HEAD, expected, shuffled(expected, order), 1e-6)
    assert [item.tensor for item in found] == ["labels", "position", "score", "height"]
    assert all(item.max_abs == 0 and item.matched == pytest.approx(1) and item.passed for item in found)


def test_drift_of_a_shuffled_proposal_is_found() -> None:
    expected = proposals()
    actual = {name: array.copy() for name, array in expected.items()}
    actual["height"][0, 0, 7] += 0.25
    found = compare_stage("stage", HEAD, expected, shuffled(actual, np.arange(20)[::-1]), 1e-3)
    assert [item.tensor for item in found if not item.passed] == ["height"]
    assert found[3].max_abs == pytest.approx(0.25, rel=1e-5)
    assert found[3].mean_abs == pytest.approx(0.25 / 20, rel=1e-5)


@pytest.mark.parametrize("change", ["label", "place"])
def test_lost_proposals_fail_once_their_score_counts(change: str) -> None:
    expected = proposals()
    expected["score"][..., :] = 0.01
    expected["score"][..., :4] = 1.0
    for lost, passes in ((slice(4, 10), True), (slice(0, 2), False)):
        actual = {name: array.copy() for name, array in expected.items()}
        if change == "label":
            actual["labels"][:, lost] = 9
        else:
            actual["position"][:, 0, lost] += 1.2
        found = compare_stage("stage", HEAD, expected, actual, 1e-6)
        assert all(item.passed is passes for item in found)
        assert found[0].matched < 1


def test_figures_are_what_they_say() -> None:
    expected, actual = np.asarray([3.0, -4.0, 0.0], np.float32), np.asarray([3.0, -4.0, 1.0], np.float32)
    (item,) = compare_stage("stage", PLAIN, {"y": expected}, {"y": actual}, 0.25)
    assert (item.max_abs, item.mean_abs, item.scaled_max) == (1.0, pytest.approx(1 / 3), 0.25)
    assert item.cosine == pytest.approx(25 / (5 * np.sqrt(26)))
    assert item.passed
    (strict,) = compare_stage("stage", PLAIN, {"y": expected}, {"y": actual}, 0.2)
    assert not strict.passed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_overflow_never_passes(bad: float) -> None:
    expected, actual = np.ones(3, np.float32), np.asarray([1, bad, 1], np.float32)
    (item,) = compare_stage("stage", PLAIN, {"y": expected}, {"y": actual}, 1e9)
    assert not item.passed
    with pytest.raises(ExportError, match=r"plain\.y"):
        raise_on_drift([item])


def test_other_shapes_never_pass() -> None:
    (item,) = compare_stage("stage", PLAIN, {"y": np.ones((3, 1))}, {"y": np.ones(3)}, 1e9)
    assert not item.passed


def test_nothing_to_compare_and_zeros_pass() -> None:
    for array in (np.zeros((0, 4), np.float32), np.zeros(4, np.float32)):
        (item,) = compare_stage("stage", PLAIN, {"y": array}, {"y": array}, 1e-9)
        assert item.passed
        assert item.cosine == 1.0
