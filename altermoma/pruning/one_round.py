"""AlterEva scores of one round, as a recipe asks for them: which batches, which passes, which weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from altermoma.errors import PruningError
from altermoma.pruning.altereva import AlterEvaOptions, Indicators, altereva, measure_terms
from altermoma.pruning.channels import ChannelGroup, ChannelVectors
from altermoma.pruning.indicators import ChannelTerms, ScoringData, Terms
from altermoma.pruning.kept import Kept
from altermoma.pruning.masking import Batch, LossFunction
from altermoma.recipe import PruneRecipe


def batches_needed(recipe: PruneRecipe) -> int:
    """Batches that `prune` takes.

    Raises:
        PruningError: a recipe that leaves them open.
    """
    for key in ("score_batches", "reactivation_batches", "reri_batches"):
        if getattr(recipe, key) < 1:
            raise PruningError(f"prune.{key} = 0", expected="1 or more; 0 is for the size of the model to fill in")
    return max(recipe.score_batches, recipe.reactivation_batches)


def passes_of(recipe: PruneRecipe) -> int:
    """Forward and backward passes of AlterMOMA's scoring of all partitions; those with a branch masked are cheaper.

    With two batches for DeCI and one for ReRI they are 2 B + 4 for B reactivation batches; every further round measures
    DeCI once more.
    """
    terms = min(recipe.reri_batches, recipe.reactivation_batches)
    masked = recipe.reactivation_batches + 2 * terms - 1
    return recipe.score_rounds * recipe.score_batches * bool(recipe.alpha) + 2 * masked * bool(recipe.beta)


def score(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    kept: Kept | None = None,
) -> ChannelVectors:
    """AlterEva scores of the groups at the model's weights as they are: of one round (`methods.altermoma` has more)."""
    return score_terms(model, ChannelTerms(model, groups, recipe.aggregation), batches, recipe, loss_fn, kept)


def score_terms(
    model: nn.Module,
    terms: Terms,
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    kept: Kept | None = None,
) -> ChannelVectors:
    """AlterEva scores of one round, of channels or single elements, as the terms say."""
    indicators = indicators_of(model, terms, batches, recipe, loss_fn, kept)
    return altereva(terms.groups, indicators, altereva_options(recipe))


def altereva_options(recipe: PruneRecipe) -> AlterEvaOptions:
    """The recipe's weights, as `altereva` takes them."""
    return AlterEvaOptions(
        alpha=recipe.alpha,
        beta=recipe.beta,
        lr=recipe.reactivation_lr,
        aggregation=recipe.aggregation,
        redundancy=recipe.redundancy,
        unit=recipe.unit,
    )


def indicators_of(
    model: nn.Module,
    terms: Terms,
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    loss_fn: LossFunction,
    kept: Kept | None = None,
) -> Indicators:
    """DeCI and ReRI of channels or single elements, on as many of the batches as the recipe says."""
    reactivation = batches[: recipe.reactivation_batches]
    return measure_terms(
        model,
        terms,
        loss_fn,
        batches[: recipe.score_batches],
        ScoringData(
            reactivation=reactivation,
            terms=reactivation[: recipe.reri_batches],
            starts_together=True,
            kept=kept or Kept(),
            norms=recipe.norms,
        ),
        altereva_options(recipe),
    )
