from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from training_standins import GEOMETRY, Outputs, random_outputs, random_truth

from altermoma.frames import Boxes
from altermoma.training.losses import (
    CODE_WEIGHTS,
    LossWeights,
    box_codes,
    detection_loss,
    gaussian_focal_loss,
    sigmoid_focal_loss,
)
from altermoma.training.targets import MatchCosts, encode, heatmap_targets, match


def naive_focal(logit: float, positive: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def naive_heatmap(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -((1 - p) ** 2) * math.log(p) if target == 1 else -((1 - target) ** 4) * p**2 * math.log(1 - p)


def test_sigmoid_focal_loss_against_its_formula() -> None:
    logits = torch.tensor([[-3.0, 0.2], [4.0, -0.7]], dtype=torch.float64)
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    expected = naive_focal(-3.0, False) + naive_focal(0.2, True) + naive_focal(4.0, True) + naive_focal(-0.7, False)
    assert float(sigmoid_focal_loss(logits, target)) == pytest.approx(expected, rel=1e-12)


def test_gaussian_focal_loss_against_its_formula() -> None:
    logits = torch.tensor([-3.0, 0.2, 1.5], dtype=torch.float64)
    target = torch.tensor([0.0, 1.0, 0.6], dtype=torch.float64)
    expected = sum(naive_heatmap(x, t) for x, t in zip(logits.tolist(), target.tolist(), strict=True))
    assert float(gaussian_focal_loss(logits, target)) == pytest.approx(expected, rel=1e-12)


def test_losses_stay_finite_at_extreme_logits() -> None:
    logits = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    target = torch.tensor([1.0, 0.0, 0.0, 1.0])
    total = gaussian_focal_loss(logits, target) + sigmoid_focal_loss(logits, target)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0] < -0.5  # a positive the network is sure against still pulls, unlike with a clipped sigmoid


def naive_loss(outputs: Outputs, truths: list[Boxes]) -> dict[str, float]:
    """Query by query, code by code, in Python floats."""
    codes, logits = box_codes(outputs).numpy(), outputs.heatmap.numpy()
    matches = [match(logits[b], codes[b], t, GEOMETRY, MatchCosts()) for b, t in enumerate(truths)]
    responsible = {
        (b, int(q)): int(m) for b, found in enumerate(matches) for q, m in zip(found.queries, found.boxes, strict=True)
    }
    classes = boxes = 0.0
    for b in range(codes.shape[0]):
        for q in range(codes.shape[1]):
            index = responsible.get((b, q))
            label = None if index is None else int(truths[b].labels_m[index])
            classes += sum(naive_focal(float(logits[b, c, q]), c == label) for c in range(10))
            if index is not None:
                errors = np.abs(codes[b, q] - encode(truths[b], GEOMETRY)[index]) * CODE_WEIGHTS
                boxes += float(np.nansum(errors))
    target = heatmap_targets(truths, GEOMETRY, 10)
    dense = outputs.dense_heatmap.numpy()
    p = 1 / (1 + np.exp(-dense))
    cells = np.where(target == 1, -((1 - p) ** 2) * np.log(p), -((1.0 - target) ** 4) * p**2 * np.log(1 - p))
    return {
        "heatmap": cells.sum() / (target == 1).sum(),
        "classes": classes / len(responsible),
        "boxes": 0.25 * boxes / len(responsible),
    }


def test_detection_loss_against_a_naive_reference() -> None:
    rng = np.random.default_rng(5)
    outputs = random_outputs(rng, 2, 12)
    truths = [random_truth(rng, 7, unknown_velocity=True), random_truth(rng, 4)]
    terms = detection_loss(outputs, truths, GEOMETRY)
    expected = naive_loss(outputs, truths)
    for name, value in expected.items():
        assert float(getattr(terms, name)) == pytest.approx(value, rel=1e-6)
    assert float(terms.total) == pytest.approx(sum(expected.values()), rel=1e-6)
    assert terms.matched == 11


def test_a_perfect_head_has_no_box_loss_and_full_overlap() -> None:
    truth = random_truth(np.random.default_rng(6), 5)
    codes = torch.from_numpy(encode(truth, GEOMETRY)).T[None]
    logits = torch.full((1, 10, 5), -12.0, dtype=torch.float64)
    logits[0, truth.labels_m, range(5)] = 12.0
    heatmap = torch.from_numpy(heatmap_targets([truth], GEOMETRY, 10)).double()
    outputs = Outputs(
        dense_heatmap=torch.logit(heatmap, eps=1e-6),
        center=codes[:, 0:2],
        height=codes[:, 2:3],
        dim=codes[:, 3:6],
        rot=codes[:, 6:8],
        vel=codes[:, 8:10],
        heatmap=logits,
    )
    terms = detection_loss(outputs, [truth], GEOMETRY)
    assert float(terms.boxes) == pytest.approx(0.0, abs=1e-12)
    assert float(terms.classes) == pytest.approx(0.0, abs=1e-6)
    assert terms.overlap == pytest.approx(1.0, abs=1e-6)


def test_gradient_equals_finite_differences() -> None:
    rng = np.random.default_rng(7)
    base = random_outputs(rng, 1, 5)
    truths = [random_truth(rng, 3, unknown_velocity=True)]
    # A few dense cells only, gradcheck visits every input: those around the first box.
    cells = base.dense_heatmap[:, :, 30:32, 30:32].clone()

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        dense = base.dense_heatmap.clone()
        dense[:, :, 30:32, 30:32] = tensors[0]
        names = ("center", "height", "dim", "rot", "vel", "heatmap")
        outputs = dataclasses.replace(base, dense_heatmap=dense, **dict(zip(names, tensors[1:], strict=True)))
        return detection_loss(outputs, truths, GEOMETRY).total

    inputs = [cells, base.center, base.height, base.dim, base.rot, base.vel, base.heatmap]
    assert torch.autograd.gradcheck(loss, [t.clone().requires_grad_() for t in inputs], eps=1e-6, atol=1e-6)


def test_frames_without_boxes_give_a_finite_loss_with_gradients() -> None:
    outputs = random_outputs(np.random.default_rng(8), 2, 6)
    tensors = {f.name: getattr(outputs, f.name).requires_grad_() for f in dataclasses.fields(outputs)}
    terms = detection_loss(Outputs(**tensors), [Boxes.empty(), Boxes.empty()], GEOMETRY)
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert float(terms.boxes.detach()) == 0
    assert tensors["heatmap"].grad.abs().sum() > 0
    assert tensors["center"].grad.abs().sum() == 0


def test_weights_scale_the_parts() -> None:
    rng = np.random.default_rng(9)
    outputs, truths = random_outputs(rng, 1, 6), [random_truth(rng, 3)]
    one = detection_loss(outputs, truths, GEOMETRY)
    other = detection_loss(outputs, truths, GEOMETRY, weights=LossWeights(heatmap=2.0, classes=0.0, boxes=0.5))
    assert float(other.total) == pytest.approx(2 * float(one.heatmap) + 2 * float(one.boxes))


def test_unknown_velocity_has_no_gradient() -> None:
    rng = np.random.default_rng(10)
    outputs = random_outputs(rng, 1, 4)
    truth = random_truth(rng, 2, unknown_velocity=True)  # the first box only
    velocity = outputs.vel.clone().requires_grad_()
    detection_loss(dataclasses.replace(outputs, vel=velocity), [truth], GEOMETRY).total.backward()
    touched = velocity.grad.abs().sum(dim=1)[0] > 0
    assert int(touched.sum()) == 1
