"""Masks over single weights against the method's equations taken literally, one weight at a time."""

from __future__ import annotations

import pytest
import torch
from branch_toys import TwoBranches, naive_gradient, naive_reactivated, toy_batches, toy_loss, toy_model
from torch import Tensor

from altermoma.errors import PruningError
from altermoma.pruning.unstructured import element_scores, global_masks, masked_model, sparsity_report
from altermoma.recipe import PruneRecipe

RECIPE = PruneRecipe(
    beta=1.0,
    unit="share",
    score_batches=3,
    reactivation_batches=2,
    reri_batches=1,
    reactivation_lr=0.05,
    batch_size=2,
    norms="running",
)
MASKED = {"camera": ["lidar"], "lidar": ["camera"], "fusion": ["lidar", "camera"]}


def naive_element_scores(model: TwoBranches) -> dict[str, Tensor]:
    """Eq. 4-13 on RECIPE's batches, in float64."""
    batches = toy_batches(3)
    theta = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim > 1}
    contribution = {n: torch.zeros_like(p) for n, p in theta.items()}
    for batch in batches:
        slopes = naive_gradient(model, batch, "none")
        for name, value in theta.items():
            contribution[name] += (value * slopes[name]).abs()
    redundancy: dict[str, dict[str, Tensor]] = {}
    for masked in ("lidar", "camera"):
        later = naive_reactivated(model, batches[:2], masked, 0.05)
        before, after = naive_gradient(model, batches[0], masked), naive_gradient(later, batches[0], masked)
        redundancy[masked] = {n: (p * before[n] - p * after[n]).abs() for n, p in theta.items()}
    scores = {}
    for name in theta:
        partition = model.partition_of(name)
        mine = [n for n in theta if model.partition_of(n) == partition]
        scores[name] = contribution[name] / sum(contribution[n].sum() for n in mine)
        for masked in MASKED[partition]:
            term = redundancy[masked]
            scores[name] = scores[name] - term[name] / sum(term[n].sum() for n in mine) / len(MASKED[partition])
    return scores


def test_scores_equal_the_equations() -> None:
    model = toy_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = element_scores(model, toy_batches(3), RECIPE, toy_loss)
    expected = naive_element_scores(model)
    assert found.keys() == expected.keys() == {f"{n}.weight" for n in ("cam1", "cam2", "lid1", "lid2", "fuse", "head")}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.flatten(), rtol=1e-4, atol=1e-7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9])
def test_masks_keep_the_highest_scores_of_all(sparsity: float) -> None:
    model = toy_model()
    scores = element_scores(model, toy_batches(3), RECIPE, toy_loss)
    masks = global_masks(model, scores, sparsity)
    ranked = sorted(
        ((float(s), name, index) for name, vector in scores.items() for index, s in enumerate(vector)), reverse=True
    )
    kept = {(name, index) for _, name, index in ranked[: len(ranked) - round(sparsity * len(ranked))]}
    for name, mask in masks.items():
        assert mask.flatten().tolist() == [(name, index) in kept for index in range(mask.numel())]
    masked = masked_model(model, masks)
    for name, tensor in model.state_dict().items():
        expected = tensor * masks[name] if name in masks else tensor
        assert torch.equal(masked.state_dict()[name], expected), name
    report = sparsity_report(model, masks)
    assert report.total == pytest.approx(1 - len(kept) / len(ranked))
    lidar = [mask for name, mask in masks.items() if name.startswith("lid")]
    gone, all_of_it = sum(int((~mask).sum()) for mask in lidar), sum(mask.numel() for mask in lidar)
    assert report.by_partition["lidar"] == pytest.approx(gone / all_of_it)
    assert report.by_layer["fuse.weight"] == pytest.approx(float((~masks["fuse.weight"]).float().mean()))


def test_ties_leave_the_exact_number() -> None:
    model = toy_model()
    scores = {"cam1.weight": torch.zeros(108), "lid1.weight": torch.zeros(90)}
    masks = global_masks(model, scores, 0.5)
    assert int(masks["cam1.weight"].sum()) == 99
    assert int(masks["lid1.weight"].sum()) == 0


def test_what_does_not_fit_is_an_error() -> None:
    model, nans = toy_model(), torch.full((108,), torch.nan)
    with pytest.raises(PruningError, match="sparsity of 1"):
        global_masks(model, {"cam1.weight": torch.zeros(108)}, 1.0)
    for name, vector in (("cam1.weight", torch.zeros(3)), ("nothing", torch.zeros(3)), ("cam1.weight", nans)):
        with pytest.raises(PruningError, match="scores of"):
            global_masks(model, {name: vector}, 0.5)
    with pytest.raises(PruningError, match="no trainable weight"):
        element_scores(model.requires_grad_(False), toy_batches(3), RECIPE, toy_loss)
