"""The methods of the paper's comparison against what their authors or torch say, in float64 on the two-branch toy."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from branch_toys import TOY_GROUPS, TwoBranches, naive_gradient, toy_batches, toy_loss, toy_model
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.indicators import ChannelTerms
from altermoma.pruning.methods.choose import batches_of, scores_of
from altermoma.pruning.methods.scoring import Scoring, mean_magnitude, share_of_round
from altermoma.pruning.methods.synflow import flow, flow_scores, make_positive
from altermoma.pruning.methods.work import weight_work
from altermoma.pruning.unstructured import ElementTerms, Masks, apply_masks, global_masks
from altermoma.recipe import PruneRecipe

SCOPE = ("camera", "lidar", "fusion")
RECIPE = PruneRecipe(
    amount=0.6,
    norms="running",
    score_batches=3,
    reactivation_batches=3,
    reri_batches=1,
    prospr_steps=2,
    prospr_draws=1,
    prospr_lr=0.05,
    imp_rounds=3,
)


def work(model: nn.Module, method: Any, **changes: Any) -> Scoring:
    recipe = dataclasses.replace(RECIPE, method=method, **changes)
    return weight_work(model, toy_batches(batches_of(recipe)), recipe, toy_loss)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}


def test_snip_sums_gradients_before_the_absolute_value() -> None:
    model = toy_model()
    found = scores_of(work(model, "snip")).scores
    slopes = [naive_gradient(model, batch, "none") for batch in toy_batches(3)]
    for name, theta in weights_of(model).items():
        expected = (theta * sum(slope[name] for slope in slopes)).abs()
        torch.testing.assert_close(found[name].double(), expected.flatten(), rtol=1e-5, atol=1e-9)
    apart = sum((theta * slope[name]).abs().sum() for slope in slopes for name, theta in weights_of(model).items())
    assert float(sum(vector.sum() for vector in found.values())) < 0.99 * float(apart), "some terms must cancel"


def test_snip_of_a_channel_is_the_loss_of_scaling_it() -> None:
    """Finite differences of a factor on every slice of a channel at once."""
    model = toy_model().eval()
    terms = ChannelTerms(model, TOY_GROUPS, "channel")
    recipe = dataclasses.replace(RECIPE, method="snip", score_batches=1)
    batch = toy_batches(1)
    found = scores_of(
        Scoring(model=model, terms=terms, batches=batch, loss_fn=toy_loss, recipe=recipe, cut=lambda *_: {})
    ).scores["lid1"]
    (group,) = (group for group in TOY_GROUPS if group.name == "lid1")
    for channel in range(group.width):
        losses = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(model)
            for member in group.members:
                tensor = dict(moved.named_parameters()).get(member.tensor)
                if tensor is not None:
                    index = member.indices(torch.tensor([channel]))
                    tensor.data.index_copy_(member.dim, index, tensor.data.index_select(member.dim, index) * (1 + step))
            losses.append(toy_loss(moved, *batch[0], "none").item())
        assert float(found[channel]) == pytest.approx(abs(losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_prospr_is_the_derivative_through_the_steps() -> None:
    """Finite differences of the loss after two SGD steps of torch's own optimiser, as a function of one mask entry."""
    model = toy_model()
    found = scores_of(work(model, "prospr")).scores
    batches = toy_batches(3)

    def loss_after(name: str, index: int, factor: float) -> float:
        trained = copy.deepcopy(model).train()
        with torch.no_grad():
            trained.get_parameter(name).view(-1)[index] *= factor
        optimiser = torch.optim.SGD(trained.parameters(), lr=0.05)
        for batch in batches[:2]:
            optimiser.zero_grad()
            toy_loss(trained, *batch, "none").backward()
            optimiser.step()
        return toy_loss(trained, *batches[2], "none").item()

    for name, index in (("cam1.weight", 3), ("cam2.weight", 5), ("lid1.weight", 11), ("fuse.weight", 100)):
        slope = (loss_after(name, index, 1 + 1e-5) - loss_after(name, index, 1 - 1e-5)) / 2e-5
        assert float(found[name][index]) == pytest.approx(abs(slope), rel=1e-3, abs=1e-9), name
    without = scores_of(work(model, "prospr", prospr_lr=1e-9)).scores
    assert not torch.allclose(without["cam1.weight"], found["cam1.weight"], rtol=1e-2), "the steps must matter"


def test_prospr_that_diverges_says_so() -> None:
    with pytest.raises(PruningError, match="not finite") as caught:
        scores_of(work(toy_model(), "prospr", prospr_lr=1e200))
    assert "prospr_lr" in caught.value.remedy


def one_step(model: nn.Module, masks: Masks, turn: int) -> nn.Module:
    """Training between the rounds: one gradient step on a batch of the round's own, masked weights held."""
    trained = copy.deepcopy(model).eval()
    toy_loss(trained, *toy_batches(1, seed=turn)[0], "none").backward()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
    apply_masks(trained, masks)
    return trained


def test_imp_removes_what_torch_prunes_globally_round_by_round() -> None:
    model = toy_model()
    scoring = dataclasses.replace(work(model, "imp"), retrain=one_step)
    cuts: list[float] = []

    def cut(scores: ChannelVectors, share: float) -> Masks:
        cuts.append(share)
        return scoring.cut(scores, share)

    found = global_masks(model, scores_of(dataclasses.replace(scoring, cut=cut)).scores, RECIPE.amount)
    assert cuts == [share_of_round(RECIPE.amount, turn, 3) for turn in (1, 2)], "the last are cut by the caller"
    names = list(weights_of(model))
    total = sum(weight.numel() for weight in weights_of(model).values())
    kept: dict[str, Tensor] = {}
    for turn in (1, 2, 3):
        rewound = copy.deepcopy(model)
        apply_masks(rewound, kept)
        trained = one_step(rewound, kept, turn)
        places = [(trained.get_submodule(name.removesuffix(".weight")), "weight") for name in names]
        for name, (module, leaf) in zip(names, places, strict=True):
            torch_prune.custom_from_mask(module, leaf, kept[name] if kept else torch.ones_like(module.weight))
        gone = total - int(sum(mask.sum() for mask in kept.values())) if kept else 0
        amount = round(share_of_round(RECIPE.amount, turn, 3) * total) - gone
        torch_prune.global_unstructured(places, pruning_method=torch_prune.L1Unstructured, amount=amount)
        kept = {name: module.weight_mask.bool() for name, (module, _) in zip(names, places, strict=True)}
    assert {name: mask.tolist() for name, mask in found.items()} == {n: m.tolist() for n, m in kept.items()}


@pytest.mark.parametrize("method", ["imp", "synflow"])
def test_rounds_cut_by_the_threshold_that_the_scores_are_for(method: str) -> None:
    """Camera weights far below the others: by one threshold for all, every round would take them first."""
    model = toy_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("cam"):
                weight.mul_(1e-6)
    recipe = dataclasses.replace(RECIPE, method=method, synflow_rounds=3)
    by_part = weight_work(model, [], recipe, toy_loss, per="partition")
    if method == "imp":
        scores = scores_of(dataclasses.replace(by_part, retrain=one_step)).scores
    else:
        scores = flow_scores(copy.deepcopy(model), toy_ones(), by_part.terms, by_part.cut, 3, RECIPE.amount)
    camera = torch.cat([vector for name, vector in scores.items() if name.startswith("cam")])
    assert float((camera > 0).double().mean()) >= 1 - RECIPE.amount


def test_imp_needs_training() -> None:
    with pytest.raises(PruningError, match="without training"):
        scores_of(work(toy_model(), "imp"))


def test_synflow_conserves_the_flow() -> None:
    """Tanaka et al., theorem 1: a layer's scores sum to R wherever the network is cut."""
    model = toy_model()
    make_positive(model)
    names = list(weights_of(model))
    slopes = flow(model, toy_ones(), names)
    sums = {n: float((weights_of(model)[n] * s).sum()) for n, s in zip(names, slopes, strict=True)}
    assert sums["cam1.weight"] == pytest.approx(sums["cam2.weight"], rel=1e-9)
    assert sums["lid1.weight"] == pytest.approx(sums["lid2.weight"], rel=1e-9)
    assert sums["fuse.weight"] == pytest.approx(sums["head.weight"], rel=1e-9)
    assert sums["fuse.weight"] == pytest.approx(sums["cam2.weight"] + sums["lid2.weight"], rel=1e-9)


def toy_ones() -> dict[str, Tensor]:
    return {name: torch.ones_like(x) for name, x in toy_batches(1)[0][0].items()}


def naive_synflow(model: TwoBranches, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """|w| * dR/d|w| with every norm folded into a factor per channel, from single convolutions."""
    theta = {name: (weight.abs() * kept[name]).requires_grad_() for name, weight in weights_of(model).items()}

    def norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        return x * (bn.weight.detach().abs() / (bn.running_var + bn.eps).sqrt())[:, None, None]

    def conv(x: Tensor, name: str, padding: int) -> Tensor:
        return nn.functional.conv2d(x, theta[f"{name}.weight"], padding=padding)

    ones = toy_ones()
    camera = conv(norm(conv(ones["camera"], "cam1", 1), model.cam_bn), "cam2", 0)
    lidar = conv(norm(conv(ones["lidar"], "lid1", 1), model.lid_bn), "lid2", 0)
    fused = norm(conv(torch.cat([camera, lidar], dim=1), "fuse", 1), model.fuse_bn)
    conv(fused, "head", 0).sum().backward()
    return {name: (weight * weight.grad).detach() for name, weight in theta.items()}


def test_synflow_rounds_equal_a_naive_network() -> None:
    model = toy_model()
    terms = ElementTerms(model, SCOPE)
    found = flow_scores(
        copy.deepcopy(model), toy_ones(), terms, lambda scores, share: global_masks(model, scores, share), 10, 0.6
    )
    kept = {name: torch.ones_like(weight) for name, weight in weights_of(model).items()}
    for turn in range(1, 11):
        expected = naive_synflow(model, kept)
        every = torch.cat([vector.flatten() for vector in expected.values()])
        count = round(share_of_round(0.6, turn, 10) * len(every))
        if turn < 10 and count:
            threshold = every.kthvalue(count).values
            kept = {name: (vector > threshold).double() for name, vector in expected.items()}
    factor = 2.0 ** round(math.log2(float(found["head.weight"].sum()) / float(expected["head.weight"].sum())))
    for name, vector in expected.items():
        torch.testing.assert_close(found[name].double(), factor * vector.flatten(), rtol=1e-5, atol=1e-12)
    assert min(float(vector.sum()) for vector in found.values()) > 0, "no layer is emptied"


def test_synflow_ranks_flows_beyond_single_precision() -> None:
    """Forty-five orders of magnitude more in one layer are a factor of all scores: the same weights stay."""
    scores = []
    for factor in (1.0, 1e45):
        model = toy_model()
        model.head.weight.data.mul_(factor)
        terms = ElementTerms(model, SCOPE)
        scores.append(
            flow_scores(model, toy_ones(), terms, lambda found, share, m=model: global_masks(m, found, share), 5, 0.6)
        )
    kept = [global_masks(toy_model(), found, 0.6) for found in scores]
    for name, mask in kept[0].items():
        assert torch.equal(mask, kept[1][name]), name
        assert bool(mask.any()), name


@pytest.mark.parametrize("method", ["altermoma", "snip", "prospr", "magnitude", "random"])
def test_the_model_comes_back_bit_for_bit(method: str) -> None:
    model = toy_model()
    before = copy.deepcopy(model.state_dict())
    first = scores_of(work(model, method)).scores
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    again = scores_of(work(model, method)).scores
    assert all(torch.equal(vector, again[name]) for name, vector in first.items())


def test_mean_magnitude_does_not_favour_long_channels() -> None:
    model = toy_model()
    for parameter in model.parameters():
        nn.init.constant_(parameter, -0.3)
    found = mean_magnitude(model, ChannelTerms(model, TOY_GROUPS, "channel"))
    for vector in found.values():
        torch.testing.assert_close(vector, torch.full_like(vector, 0.3))


def test_random_scores_follow_the_seed() -> None:
    model = toy_model()
    first, same, other = (scores_of(work(model, "random", seed=seed)).scores["fuse.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("amount", [0.0, -0.1, 1.0, 1.5])
def test_an_amount_outside_is_an_error(amount: float) -> None:
    with pytest.raises(PruningError, match=r"prune\.amount"):
        scores_of(dataclasses.replace(work(toy_model(), "snip"), recipe=dataclasses.replace(RECIPE, amount=amount)))


def test_too_few_batches_are_an_error() -> None:
    scoring = dataclasses.replace(work(toy_model(), "snip"), batches=toy_batches(2))
    with pytest.raises(PruningError, match="2 batches"):
        scores_of(scoring)


@pytest.mark.parametrize("method", ["snip", "prospr", "altermoma"])
def test_zero_gradients_are_an_error(method: str) -> None:
    def constant(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        return 0.0 * toy_loss(model, batch, truths, masked)

    with pytest.raises(PruningError, match=r"zero|is 0\.0"):
        scores_of(dataclasses.replace(work(toy_model(), method), loss_fn=constant))


def test_a_loss_that_breaks_during_reactivation_is_an_error() -> None:
    calls = []

    def breaking(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
        calls.append(masked)
        factor = float("nan") if calls.count("lidar") == 2 else 1.0
        return factor * toy_loss(model, batch, truths, masked)

    with pytest.raises(PruningError, match="loss is nan with mask 'lidar'") as caught:
        scores_of(dataclasses.replace(work(toy_model(), "altermoma"), loss_fn=breaking))
    assert "reactivation_lr" in caught.value.remedy


def test_a_model_without_partitions_is_an_error() -> None:
    with pytest.raises(PruningError, match="no partition_of"):
        work(nn.Sequential(nn.Linear(2, 2)), "snip")
