"""AlterMOMA in rounds, against the same thing spelled out with torch alone."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from branch_toys import TOY_GROUPS, TwoBranches, naive_gradient, toy_batches, toy_loss, toy_model
from torch import Tensor

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.indicators import ChannelTerms
from altermoma.pruning.kept import Kept
from altermoma.pruning.methods import altermoma as method
from altermoma.pruning.methods.choose import scores_of
from altermoma.pruning.methods.scoring import Scoring
from altermoma.pruning.methods.work import weight_work
from altermoma.pruning.surgery import entry_masks
from altermoma.pruning.unstructured import element_scores, global_masks, masked_model
from altermoma.recipe import PruneRecipe

RECIPE = PruneRecipe(
    amount=0.8,
    norms="running",
    beta=0.0,
    unit="share",
    score_batches=2,
    reactivation_batches=2,
    reri_batches=1,
    batch_size=2,
    score_rounds=3,
)
PARTITIONS = {"cam1": "camera", "cam2": "camera", "lid1": "lidar", "lid2": "lidar", "fuse": "fusion", "head": "fusion"}


def naive_rounds(model: TwoBranches, amount: float, rounds: int) -> dict[str, Tensor]:
    """What stays: after each round the same share of what is left, by the partition's shares of |theta * gradient|."""
    theta = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim > 1}
    stays = {name: torch.ones_like(p, dtype=torch.bool) for name, p in theta.items()}
    for turn in range(1, rounds + 1):
        cut = copy.deepcopy(model)
        with torch.no_grad():
            for name, mask in stays.items():
                cut.get_parameter(name).mul_(mask)
        slopes = [naive_gradient(cut, batch, "none") for batch in toy_batches(2)]
        terms = {
            n: sum(((theta[n] * stays[n] * s[n]).abs() for s in slopes), torch.zeros_like(theta[n])) for n in theta
        }
        totals = {
            part: sum(float(terms[n].sum()) for n in terms if PARTITIONS[n.split(".")[0]] == part)
            for part in ("camera", "lidar", "fusion")
        }
        shares = {n: term / totals[PARTITIONS[n.split(".")[0]]] for n, term in terms.items()}
        every = torch.cat([shares[n][stays[n]] for n in theta])
        size = sum(p.numel() for p in theta.values())
        keep = size - round((1 - (1 - amount) ** (turn / rounds)) * size)
        threshold = every.sort(descending=True).values[keep - 1]
        stays = {n: stays[n] & (shares[n] >= threshold) for n in theta}
    return stays


def test_rounds_equal_the_loop() -> None:
    model = toy_model()
    before = copy.deepcopy(model.state_dict())
    found = scores_of(weight_work(model, toy_batches(2), RECIPE, toy_loss)).scores
    masks, expected = global_masks(model, found, 0.8), naive_rounds(model, 0.8, 3)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(mask, expected[name]) for name, mask in masks.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    once = scores_of(weight_work(model, toy_batches(2), dataclasses.replace(RECIPE, score_rounds=1), toy_loss)).scores
    at_once = global_masks(model, once, 0.8)
    assert any(not torch.equal(mask, at_once[name]) for name, mask in masks.items()), "the rounds must matter"


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_one_round_is_the_paper(beta: float) -> None:
    model, recipe = toy_model(), dataclasses.replace(RECIPE, beta=beta, score_rounds=1)
    found = scores_of(weight_work(model, toy_batches(2), recipe, toy_loss)).scores
    expected = element_scores(model, toy_batches(2), recipe, toy_loss)
    assert all(torch.equal(vector, expected[name]) for name, vector in found.items())


def test_what_is_gone_stays_gone_whatever_its_redundancy() -> None:
    """With the paper's difference scores are negative: what was removed must rank below those too."""
    model, recipe = toy_model(), dataclasses.replace(RECIPE, beta=1.0)
    plain, gone = weight_work(model, toy_batches(2), recipe, toy_loss), []

    def cut(scores: ChannelVectors, share: float) -> dict[str, Tensor]:
        masks = global_masks(model, scores, share)
        gone.append({name: ~mask for name, mask in masks.items()})
        return masks

    scores = scores_of(dataclasses.replace(plain, cut=cut)).scores
    assert any(bool((vector < 0).any()) for vector in scores.values())
    last = {name: ~mask for name, mask in global_masks(model, scores, 0.8).items()}
    for earlier, later in zip(gone, [*gone[1:], last], strict=True):
        assert all(bool(later[name][mask].all()) for name, mask in earlier.items())


def test_channels() -> None:
    """A channel that is gone has no slice left, and the others are scored without it."""
    model, batches = toy_model(), toy_batches(2)
    first = {"cam1": [1, 2, 3], "cam2": [0, 1, 2], "lid1": [0, 1, 2, 3, 4], "lid2": [0, 1], "fuse": [0, 1, 2, 3, 4, 5]}
    keep = {name: torch.tensor(indices) for name, indices in first.items()}
    work = Scoring(
        model=model,
        terms=ChannelTerms(model, TOY_GROUPS, "channel"),
        batches=batches,
        loss_fn=toy_loss,
        recipe=dataclasses.replace(RECIPE, score_rounds=2),
        cut=lambda *_: entry_masks(model, TOY_GROUPS, keep),
    )
    found = scores_of(work).scores
    assert float(found["cam1"][0]) < min(float(vector.min()) for name, vector in found.items() if name != "cam1")
    without = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in entry_masks(model, TOY_GROUPS, keep).items():
            without.get_parameter(name).mul_(mask)
    again = scores_of(
        dataclasses.replace(
            work,
            model=without,
            terms=ChannelTerms(without, TOY_GROUPS, "channel"),
            recipe=dataclasses.replace(RECIPE, score_rounds=1),
        )
    ).scores
    for name, vector in found.items():
        torch.testing.assert_close(vector[keep[name]], again[name][keep[name]])


def test_a_branch_that_is_cut_through_goes_on_without_contribution() -> None:
    """The first round removes one camera layer whole: the other has no slope left, and ranks below what has one."""
    model = toy_model()
    plain = weight_work(model, toy_batches(2), dataclasses.replace(RECIPE, score_rounds=2), toy_loss)

    def cut(scores: ChannelVectors, share: float) -> dict[str, Tensor]:
        weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
        return {name: torch.full_like(p, name != "cam2.weight", dtype=torch.bool) for name, p in weights.items()}

    found = scores_of(dataclasses.replace(plain, cut=cut)).scores
    assert not found["cam1.weight"].any()
    assert bool((found["cam2.weight"] < 0).all())
    assert all(bool((found[name] > 0).any()) for name in ("lid1.weight", "lid2.weight", "fuse.weight", "head.weight"))


def test_no_gap_below_what_stays() -> None:
    """Greedy selection counts the score that is lost from the lowest one: a gap would make all that stay seem alike."""
    model = toy_model()
    scores = scores_of(weight_work(model, toy_batches(2), RECIPE, toy_loss)).scores
    every = torch.cat(list(scores.values()))
    assert -1e-30 < float(every.min()) < 0.0
    assert int((every < 0).sum()) == round((1 - 0.2 ** (2 / 3)) * len(every)), "all that two rounds removed"


def test_rounds_without_a_contribution_are_refused() -> None:
    recipe = dataclasses.replace(RECIPE, alpha=0.0, beta=1.0)
    with pytest.raises(PruningError, match=r"prune\.score_rounds = 3 with prune\.alpha = 0"):
        scores_of(weight_work(toy_model(), toy_batches(2), recipe, toy_loss))


def test_redundancy_takes_the_same_part_in_all_rounds() -> None:
    """Weights that stay: their contribution now, times what redundancy left of it in the dense model."""
    model = toy_model()
    recipe = dataclasses.replace(RECIPE, beta=0.25, score_rounds=2)
    plain = weight_work(model, toy_batches(2), recipe, toy_loss)
    taken: list[dict[str, Tensor]] = []

    def cut(scores: ChannelVectors, share: float) -> dict[str, Tensor]:
        taken.append(global_masks(model, scores, share))
        return taken[-1]

    found = scores_of(dataclasses.replace(plain, cut=cut)).scores
    one = dataclasses.replace(recipe, score_rounds=1)
    dense, bare = (
        element_scores(model, toy_batches(2), dataclasses.replace(one, beta=b), toy_loss) for b in (0.25, 0.0)
    )
    left = masked_model(model, taken[0])
    now = element_scores(left, toy_batches(2), dataclasses.replace(one, beta=0.0), toy_loss)
    for name, mask in taken[0].items():
        stays = mask.flatten() & (bare[name] > 0)
        torch.testing.assert_close(found[name][stays], (now[name] * dense[name] / bare[name])[stays])


def test_a_killed_scoring_goes_on_in_its_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe = toy_model(), dataclasses.replace(RECIPE, beta=0.5)
    plain = weight_work(model, toy_batches(2), recipe, toy_loss)
    expected = scores_of(plain).scores
    work = dataclasses.replace(plain, kept=Kept(tmp_path, every_s=0.0))
    usual = method._scored_again

    def killed(given: Scoring, dense: object, done: int) -> ChannelVectors:
        if done == 2:
            raise KeyboardInterrupt
        return usual(given, dense, done)  # type: ignore[arg-type]

    monkeypatch.setattr(method, "_scored_again", killed)
    with pytest.raises(KeyboardInterrupt):
        scores_of(work)
    monkeypatch.setattr(method, "_scored_again", usual)
    losses: list[str] = []

    def counted(model: object, batch: object, truths: object, masked: str) -> Tensor:
        losses.append(masked)
        return toy_loss(model, batch, truths, masked)

    found = scores_of(dataclasses.replace(work, loss_fn=counted)).scores
    assert all(torch.equal(vector, expected[name]) for name, vector in found.items())
    assert losses == ["none", "none"], "only the last round was missing"
