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


def listed(strong: int, cut: float) -> Arrays:
    """Proposals of which the first few have a score of 1 in their class, and the others one at the cut."""
    tensors = proposals()
    tensors["score"][...] = 0.0
    tensors["score"][0, tensors["labels"][0], np.arange(20)] = np.where(np.arange(20) < strong, 1.0, cut)
    return tensors


@pytest.mark.parametrize("change", ["label", "place"])
@pytest.mark.parametrize("side", ["lost", "found"])
def test_only_ties_with_the_cut_may_be_lost(change: str, side: str) -> None:
    """Ten weak ones at the cut may be exchanged, a strong one never, on whichever side it is missing."""
    expected = listed(strong=10, cut=0.001)
    for lost, passes in ((slice(10, 20), True), (slice(9, 10), False)):
        actual = {name: array.copy() for name, array in expected.items()}
        if change == "label":
            turned = (actual["labels"][:, lost] + 1) % 3
            own = actual["score"][0, actual["labels"][0], np.arange(20)]
            actual["labels"][:, lost] = turned
            actual["score"][...] = 0.0
            actual["score"][0, actual["labels"][0], np.arange(20)] = own
        else:
            actual["position"][:, 0, lost] += 1.2
        before, after = (expected, actual) if side == "lost" else (actual, expected)
        found = compare_stage("stage", HEAD, before, after, 1e-6)
        assert all(item.passed is passes for item in found)
        assert found[0].matched < 1
        assert (found[0].above_cut > 0.9) is not passes


def test_a_proposal_just_above_the_tolerance_over_the_cut_may_not_be_lost() -> None:
    expected = listed(strong=10, cut=0.0)
    expected["score"][0, expected["labels"][0, 15], 15] = 0.02
    actual = {name: array.copy() for name, array in expected.items()}
    actual["position"][:, 0, 15] += 1.2
    assert [compare_stage("stage", HEAD, expected, actual, tolerance)[0].passed for tolerance in (0.03, 0.01)] == [
        True,
        False,
    ]


def test_many_ties_at_once_are_no_rounding() -> None:
    expected = listed(strong=0, cut=0.5)
    actual = {name: array.copy() for name, array in expected.items()}
    actual["position"][:, 0, :5] += 1.2
    (item, *_) = compare_stage("stage", HEAD, expected, actual, 1e-6)
    assert item.above_cut == 0.0
    assert not item.passed


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
