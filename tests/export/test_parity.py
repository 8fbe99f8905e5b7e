"""The comparison itself: what it forgives and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from altermoma.errors import ExportError
from altermoma.export.contract import StageContract, TensorSpec
from altermoma.export.parity import compare_stage, raise_on_drift

PLAIN = StageContract(
    name="plain",
    meaning="",
    inputs=(),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(1,), meaning="", unit=""),),
)


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
