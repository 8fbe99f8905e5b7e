"""The map loss against its equation cell by cell."""

from __future__ import annotations

import math

import pytest
import torch

from altermoma.errors import DataError
from altermoma.training.map_loss import map_loss


@pytest.mark.parametrize("kind", ["focal", "xent"])
def test_equals_the_equation(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) * 3).requires_grad_()
    truth = torch.rand(2, 3, 4, 5, generator=generator) < 0.3
    expected = 0.0
    for index in range(3):
        cells = []
        for logit, true in zip(logits[:, index].flatten().tolist(), truth[:, index].flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            right = p if true else 1 - p
            cells.append(-math.log(right) * ((1 - right) ** 2 if kind == "focal" else 1))
        expected += sum(cells) / len(cells)
    found = map_loss(logits, truth, kind)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert bool(torch.isfinite(logits.grad).all())


def test_far_logits_stay_finite() -> None:
    logits = torch.tensor([1e4, -1e4]).reshape(1, 1, 1, 2).requires_grad_()
    loss = map_loss(logits, torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2))
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert bool(torch.isfinite(logits.grad).all())


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(DataError, match=r"map truth of shape \[1, 6, 4, 5\]"):
        map_loss(torch.zeros(1, 6, 4, 4), torch.zeros(1, 6, 4, 5))
