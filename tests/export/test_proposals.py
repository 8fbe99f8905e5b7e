"""A head's choice of proposals against torch's: what rounding explains, and what it does not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from altermoma.deploy.matching import choice_drift
from altermoma.errors import ExportError
from altermoma.export.contract import load_contract
from altermoma.export.parity import compare_stage, open_session, run_session, torch_reference
from altermoma.export.proposals import CHOSEN, SCORES, choice_fixed, choice_shown
from altermoma.export.to_onnx import export_stage
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import config_of
from altermoma.models.stages import HeadStage

PRESET = "bevfusion-tiny"


def head() -> HeadStage:
    torch.manual_seed(0)
    return HeadStage(FusionModel(config_of(PRESET)).eval())


def test_a_choice_that_is_given_is_taken() -> None:
    module = head().bbox_head
    bev = torch.from_numpy(some_bev(module.shared_conv.in_channels))
    with torch.no_grad():
        free = module(bev)
        again, turned = module(bev, free.chosen), module(bev, free.chosen.flip(1))
    torch.testing.assert_close(again.heatmap, free.heatmap)
    torch.testing.assert_close(turned.center.flip(2), free.center)
    assert torch.equal(turned.query_labels.flip(1), free.query_labels)


def some_bev(channels: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(1, channels, 80, 80)).astype(np.float32)


def highest_peaks(scores_kxy: NDArray[np.float64], point_classes: tuple[int, ...], count: int) -> list[int]:
    """The definition, in loops: the head's highest local maxima."""
    classes, rows, columns = scores_kxy.shape
    found = []
    for k, x, y in itertools.product(range(classes), range(rows), range(columns)):
        inside = 0 < x < rows - 1 and 0 < y < columns - 1
        around = scores_kxy[k, max(x - 1, 0) : x + 2, max(y - 1, 0) : y + 2]
        if k in point_classes or (inside and scores_kxy[k, x, y] == around.max()):
            found.append((-scores_kxy[k, x, y], (k * rows + x) * columns + y))
    return [entry for _, entry in sorted(found)[:count]]


def test_the_choice_is_that_of_the_highest_local_maxima() -> None:
    module = head()
    bev = torch.from_numpy(some_bev(module.bbox_head.shared_conv.in_channels))
    with torch.no_grad():
        chosen, scores, margins = module.choice(bev)
        heatmap = module.bbox_head(bev).dense_heatmap[0].sigmoid().double().numpy()
    config = module.bbox_head.config
    wanted = highest_peaks(heatmap, config.point_classes, config.proposals)
    assert sorted(chosen[0].tolist()) == sorted(wanted)
    assert bool((margins[0, chosen[0]] > 0).all())
    np.testing.assert_array_equal(scores[0].double().numpy(), heatmap.ravel())


@pytest.mark.parametrize("seed", range(4))
def test_whatever_rounding_does_is_forgiven_and_no_more(seed: int) -> None:
    """The needed rounding is never above the one that was done; scores on a coarse grid make many exact ties."""
    rng, step = np.random.default_rng(seed), 1e-3
    scores = rng.integers(0, 40, (10, 12, 12)) / 40.0
    margins = FusionModel(config_of(PRESET)).bbox_head.margins(torch.from_numpy(scores)[None])[0].numpy()
    for of_point_class in (8, 9):  # the loops are told of none
        scores[of_point_class], margins[of_point_class] = 0.0, -np.inf
    chosen = np.asarray(highest_peaks(scores, (), 30))
    assert choice_drift(chosen, scores, margins, chosen[::-1]).needed == 0.0
    rounded = np.asarray(highest_peaks(scores + rng.uniform(-step, step, scores.shape), (), 30))
    assert set(rounded) != set(chosen)
    assert choice_drift(chosen, scores, margins, rounded).needed <= step


def line(*values: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of single cells far apart, all of them local maxima by their whole height."""
    return np.asarray(values), np.asarray(values)


def test_needed_is_half_of_what_separates_two_scores() -> None:
    scores, margins = line(0.9, 0.8, 0.5, 0.46)
    assert choice_drift(np.array([0, 1, 2]), scores, margins, np.array([1, 3, 0])).needed == pytest.approx(0.02)
    assert choice_drift(np.array([0, 1, 2]), scores, margins, np.array([1, 2, 3])).needed == pytest.approx(0.22)


def test_a_neighbour_in_place_of_a_maximum_needs_half_of_its_margin() -> None:
    scores, margins = np.array([0.9, 0.8, 0.799, 0.1]), np.array([0.9, 0.001, -0.001, 0.1])
    found = choice_drift(np.array([0, 1]), scores, margins, np.array([0, 2]))
    assert found.needed == pytest.approx(0.0005)
    assert found.cosine == pytest.approx(1.0, abs=1e-6)
    margins[2] = -np.inf
    assert choice_drift(np.array([0, 1]), scores, margins, np.array([0, 2])).needed == np.inf


@pytest.mark.parametrize("wrong", [[0, 0], [0, 4], [-1, 0], [0]])
def test_what_is_no_choice_never_passes(wrong: list[int]) -> None:
    scores, margins = line(0.9, 0.8, 0.5, 0.46)
    assert choice_drift(np.array([0, 1]), scores, margins, np.asarray(wrong)).needed == np.inf


def test_the_graph_shows_its_choice_and_takes_another() -> None:
    """With another choice the outputs are torch's for that one, number by number."""
    module, contract = head(), load_contract(PRESET)
    bev = some_bev(module.bbox_head.shared_conv.in_channels)
    graph = export_stage(module, contract, "head", {"bev": bev})
    reference = torch_reference({"head": module}, {"bev": bev})
    shown = run_session(open_session(choice_shown(graph)), {"bev": bev})
    np.testing.assert_array_equal(np.sort(shown[CHOSEN][0]), np.sort(reference[CHOSEN][0]))
    swapped = reference[CHOSEN][:, ::-1].copy()
    fixed = run_session(open_session(choice_fixed(graph)), {"bev": bev, CHOSEN: swapped})
    for spec in contract.stage("head").outputs:
        np.testing.assert_allclose(fixed[spec.name], reference[spec.name][..., ::-1], atol=1e-4)
    exact = run_session(open_session(choice_fixed(graph)), {"bev": bev, CHOSEN: reference[CHOSEN]})
    parity = compare_stage("stage", contract.stage("head"), reference, exact | {CHOSEN: shown[CHOSEN]}, 1e-4)
    assert next(item.tensor for item in parity) == CHOSEN
    assert all(item.passed for item in parity)
    other = shown[CHOSEN].copy()
    other[0, 0] = reference[SCORES][0].argmin()
    (wrong, *_) = compare_stage("stage", contract.stage("head"), reference, exact | {CHOSEN: other}, 1e-2)
    assert not wrong.passed


def test_a_graph_without_a_choice_is_refused() -> None:
    module, contract = head(), load_contract(PRESET)
    bev = some_bev(module.bbox_head.shared_conv.in_channels)
    graph = export_stage(module, contract, "head", {"bev": bev})
    bare = choice_fixed(graph)
    with pytest.raises(ExportError, match="0 TopK nodes"):
        choice_shown(bare)
