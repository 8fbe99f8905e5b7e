"""Pairing proposals: what it forgives and what it does not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from altermoma.deploy.matching import Unordered, only_ties_lost, pair_proposals

HOW = Unordered(labels="labels", position="position", score="score")

Arrays = dict[str, NDArray[np.generic]]


def proposals(count: int = 20, seed: int = 0) -> Arrays:
    """Positions at least two cells apart."""
    rng = np.random.default_rng(seed)
    return {
        "labels": rng.integers(0, 3, (1, count)).astype(np.int32),
        "position": np.stack([np.arange(count) * 2.5, rng.uniform(0, 80, count)])[None].astype(np.float32),
        "score": rng.uniform(0.1, 1, (1, 3, count)).astype(np.float32),
        "height": rng.normal(size=(1, 1, count)).astype(np.float32),
    }


def fine(expected: Arrays, actual: Arrays, tolerance: float = 1e-6) -> bool:
    found = pair_proposals(expected, actual, HOW)
    return only_ties_lost(found.matched, found.above_cut, tolerance)


def test_order_of_proposals_does_not_matter() -> None:
    expected = proposals()
    order = np.random.default_rng(1).permutation(20)
    found = pair_proposals(expected, {name: array[..., order] for name, array in expected.items()}, HOW)
    assert found.matched == pytest.approx(1)
    np.testing.assert_array_equal(order[found.right], found.left)


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
        found = pair_proposals(before, after, HOW)
        assert fine(before, after) is passes
        assert found.matched < 1
        assert (found.above_cut > 0.9) is not passes


def test_a_proposal_just_above_the_tolerance_over_the_cut_may_not_be_lost() -> None:
    expected = listed(strong=10, cut=0.0)
    expected["score"][0, expected["labels"][0, 15], 15] = 0.02
    actual = {name: array.copy() for name, array in expected.items()}
    actual["position"][:, 0, 15] += 1.2
    assert [fine(expected, actual, tolerance) for tolerance in (0.03, 0.01)] == [True, False]


def test_many_ties_at_once_are_no_rounding() -> None:
    expected = listed(strong=0, cut=0.5)
    actual = {name: array.copy() for name, array in expected.items()}
    actual["position"][:, 0, :5] += 1.2
    assert pair_proposals(expected, actual, HOW).above_cut == 0.0
    assert not fine(expected, actual)
