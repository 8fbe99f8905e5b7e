"""AlterEva: one importance score per channel from contribution and redundancy (paper eq. 11-13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from altermoma.errors import PruningError
from altermoma.pruning.channels import PARTITIONS, Aggregation, ChannelGroup, ChannelVectors
from altermoma.pruning.indicators import ChannelTerms, ScoringData, Terms, deci, reri
from altermoma.pruning.masking import MASKS, MASKS_OF, Batch, LossFunction, Masked, bind
from altermoma.recipe import Partition, Redundancy, Unit


@dataclass(frozen=True, kw_only=True)
class AlterEvaOptions:
    """Attributes:
    alpha, beta: weights of contribution and redundancy, 1 and 1 in the paper.
    lr: step of the reactivation, plain gradient descent.
    aggregation: see `indicators`.
    redundancy, unit: see `altereva`.
    """

    alpha: float = 1.0
    beta: float = 1.0
    lr: float = 1e-3
    aggregation: Aggregation = "channel"
    redundancy: Redundancy = "difference"
    unit: Unit = "share"


@dataclass(frozen=True, kw_only=True)
class Indicators:
    """What scores are made of; `reri` by the branch that was masked. Both are empty where their weight is zero."""

    deci: ChannelVectors
    reri: Mapping[Masked, ChannelVectors]


def measure(
    model: torch.nn.Module,
    groups: Sequence[ChannelGroup],
    loss_fn: LossFunction,
    contribution: Sequence[Batch],
    redundancy: ScoringData,
    options: AlterEvaOptions,
) -> Indicators:
    """`measure_terms` of channels, aggregated as the options say. `groups`: channel groups to score."""
    terms = ChannelTerms(model, groups, options.aggregation)
    return measure_terms(model, terms, loss_fn, contribution, redundancy, options)


def measure_terms(
    model: torch.nn.Module,
    terms: Terms,
    loss_fn: LossFunction,
    contribution: Sequence[Batch],
    redundancy: ScoringData,
    options: AlterEvaOptions,
) -> Indicators:
    """Runs Algorithm 1 up to the scores: both masks, each from the initial parameters, which come back bit for bit.

    Costs len(contribution) + 2 * (B + 2 * len(redundancy.terms) - 1) forward-backward passes where the terms are taken
    on the first batches of the reactivation; masked passes are cheaper.

    Args:
        model: the trained dense model.
        terms: of what is scored.
        loss_fn: the task loss.
        contribution: batches that estimate DeCI.
        redundancy: batches of ReRI, and where a killed process left off with both.
        options: weights and step.

    Raises:
        PruningError: a loss or gradient that is not finite, or frozen parameters.
    """
    loss = bind(model, loss_fn)
    needed = {masked for group in terms.groups for masked in MASKS_OF[group.partition]}
    return Indicators(
        deci=deci(model, loss, contribution, terms, redundancy.norms, redundancy.kept) if options.alpha else {},
        reri={
            masked: reri(model, loss, redundancy, terms, masked, options.lr)
            for masked in MASKS
            if options.beta and masked in needed
        },
    )


def altereva(
    groups: Sequence[ChannelGroup],
    indicators: Indicators,
    options: AlterEvaOptions,
) -> ChannelVectors:
    """Scores S, each indicator first divided by its sum over the partition.

    The "difference" is eq. 11-13: alpha D - beta R. With alpha = beta a partition's scores sum to zero, about half are
    negative: only their order means something. A unit of high contribution whose redundancy is a little higher still
    then ranks below one that does nothing.

    The "factor" is ours: alpha D / (1 + beta R / (alpha D)), of which alpha D - beta R is the start for small R / D. It
    is never negative: redundancy takes away from a contribution at most the whole of it.

    In shares every partition sums to the same, however much it matters and however many units share it: one threshold
    over all then favours small partitions. In the unit "loss" each partition is multiplied by its DeCI again, which
    leaves the order within it and makes scores of different partitions changes of the same loss.

    Raises:
        PruningError: an indicator that is zero over a whole partition, a partition the method does not know, or a
            factor without a contribution.
    """
    alpha, beta = options.alpha, options.beta
    if alpha <= 0.0 and (options.redundancy == "factor" or options.unit == "loss"):
        raise PruningError(
            f'redundancy = "{options.redundancy}" in the unit "{options.unit}" with alpha = {alpha:g}',
            expected="prune.alpha above 0",
        )
    scores: ChannelVectors = {}
    for partition in dict.fromkeys(group.partition for group in groups):
        if partition not in PARTITIONS:
            raise PruningError(f"groups in partition {partition!r}", expected="one of " + ", ".join(PARTITIONS))
        mine = [group for group in groups if group.partition == partition]
        lost = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in mine}
        gained = _shares(indicators.deci, mine, "DeCI", alpha) if alpha else lost
        for masked in MASKS_OF[partition] if beta else ():
            weight = beta / len(MASKS_OF[partition])
            found = _shares(indicators.reri[masked], mine, f"ReRI with {masked} masked", weight)
            lost = {name: vector + found[name] for name, vector in lost.items()}
        scale = _partition_sum(indicators.deci, list(gained), "DeCI", partition) if options.unit == "loss" else 1.0
        for name, contribution in gained.items():
            left = (
                contribution - lost[name] if options.redundancy == "difference" else _lowered(contribution, lost[name])
            )
            scores[name] = scale * left
    return {group.name: scores[group.name] for group in groups}


def _lowered(contribution: Tensor, redundancy: Tensor) -> Tensor:
    """D / (1 + R / D), zero where D is."""
    both = contribution + redundancy
    return torch.where(both > 0.0, contribution.square() / both.clamp_min(torch.finfo(both.dtype).tiny), 0.0)


def _shares(indicator: ChannelVectors, groups: Sequence[ChannelGroup], title: str, weight: float) -> ChannelVectors:
    """`weight` times the indicator's share of its sum over the groups, which are a partition's."""
    total = _partition_sum(indicator, [group.name for group in groups], title, groups[0].partition)
    return {group.name: weight * indicator[group.name].double() / total for group in groups}


def _partition_sum(indicator: ChannelVectors, names: Sequence[str], title: str, partition: Partition) -> float:
    total = float(sum(indicator[name].sum() for name in names))
    if not total > 0.0:
        raise PruningError(
            f"{title} is {total} over the whole {partition} partition",
            expected="a positive sum",
            remedy="score a trained model on frames with objects, with prune.reactivation_lr above zero",
        )
    return total
