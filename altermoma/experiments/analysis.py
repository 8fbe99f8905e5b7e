"""What the indicators see in a model.

Gradients with one branch and with both (the paper's figure 1), the branches' maps before and after reactivation and
after cutting (figure 3), where redundancy lies, and how alike the methods' scores are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altermoma.models.batch import FrameBatch, collate
from altermoma.models.devices import device_of
from altermoma.models.fusion import FusionModel
from altermoma.models.modes import eval_mode
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.indicators import ChannelTerms
from altermoma.pruning.masking import MASKS_OF, Batch, Loss, Masked, bind, gradients, preserved, reactivate
from altermoma.pruning.unstructured import ElementTerms
from altermoma.recipe import Partition, PruneRecipe
from altermoma.training.losses import task_loss

Map = NDArray[np.float32]
BACKBONES: tuple[Partition, ...] = ("camera", "lidar")


@dataclass(frozen=True, kw_only=True)
class LayerGradients:
    """Mean |gradient| of a layer's weights, summed over the batches.

    Attributes:
        both: with both branches; `alone`: with the other branch masked; `reactivated`: so, after the reactivation.
        contribution, redundancy: share of the partition's DeCI and ReRI.
    """

    name: str
    partition: Partition
    weights: int
    both: float
    alone: float
    reactivated: float
    contribution: float
    redundancy: float


@dataclass(frozen=True, kw_only=True)
class BranchMaps:
    """Mean |value| over the channels of a branch's bird's-eye view, [X, Y]."""

    before: Map
    reactivated: Map
    pruned: Map


@dataclass(frozen=True, kw_only=True)
class ChannelRedundancy:
    """One channel and its shares of DeCI and ReRI in its partition, over the mean share of a channel there."""

    group: str
    channel: int
    partition: Partition
    contribution: float
    redundancy: float


@dataclass(frozen=True, kw_only=True)
class BackboneAnalysis:
    """Attributes:
    rank_correlation: Spearman's, of DeCI and ReRI over the backbone's weights.
    outranked: of the tenth of weights with the highest DeCI, the share whose ReRI share is higher still.
    """

    layers: tuple[LayerGradients, ...]
    channels: tuple[ChannelRedundancy, ...]
    maps: BranchMaps
    rank_correlation: float
    outranked: float


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """|gradient| and |term| by weight name, over batches."""

    both: ChannelVectors
    alone: ChannelVectors
    reactivated: ChannelVectors
    deci: ChannelVectors
    reri: ChannelVectors
    channel_deci: ChannelVectors
    channel_reri: ChannelVectors


def analyse(
    model: FusionModel, batches: Sequence[Batch], recipe: PruneRecipe, pruned: FusionModel, frame: FrameBatch
) -> dict[Partition, BackboneAnalysis]:
    """Both backbones of a model, with the recipe's reactivation.

    Args:
        model: the trained dense model; it comes back bit for bit.
        batches: for the gradients the first `reri_batches`, for the reactivation all `reactivation_batches`.
        recipe: its [prune].
        pruned: the model after cutting, for its maps.
        frame: whose maps are shown.
    """
    from altermoma.pruning.groups import fusion_groups

    loss = bind(model, task_loss)
    groups = fusion_groups(model)
    found: dict[Partition, BackboneAnalysis] = {}
    for partition in BACKBONES:
        terms = ElementTerms(model, (partition,))
        channels = ChannelTerms(model, [g for g in groups if g.partition == partition], recipe.aggregation)
        before = branch_map(model, partition, frame)
        sums, reactivated = _sums(model, loss, batches, recipe, (terms, channels), frame)
        shown = BranchMaps(before=before, reactivated=reactivated, pruned=branch_map(pruned, partition, frame))
        deci, reri = (torch.cat(list(side.values())) for side in (sums.deci, sums.reri))
        found[partition] = BackboneAnalysis(
            layers=_layers(sums, partition),
            channels=_channels(sums, partition),
            maps=shown,
            rank_correlation=spearman(deci, reri),
            outranked=_outranked(deci, reri),
        )
    return found


def _sums(
    model: FusionModel,
    loss: Loss,
    batches: Sequence[Batch],
    recipe: PruneRecipe,
    terms: tuple[ElementTerms, ChannelTerms],
    frame: FrameBatch,
) -> tuple[_Sums, Map]:
    elements, channels = terms
    partition = elements.groups[0].partition
    (masked,) = MASKS_OF[partition]
    few = [batches[index] for index in range(recipe.reri_batches)]
    parameters = (*elements.parameters, *channels.parameters)
    with preserved(model, recipe.norms) as theta:
        both = _gradients_of(loss, few, "none", parameters)
        alone = _gradients_of(loss, few, masked, parameters)
        for index in range(recipe.reactivation_batches):
            reactivate(model, loss, batches[index], masked, recipe.reactivation_lr)
        after = _gradients_of(loss, few, masked, parameters)
        shown = branch_map(model, partition, frame)
    count = len(elements.parameters)
    change = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(alone, after, strict=True)]

    def total(kind: ElementTerms | ChannelTerms, parts: list[list[Tensor]]) -> ChannelVectors:
        result = kind.zeros()
        for part in parts:
            for name, vector in kind.magnitude(theta, part).items():
                result[name] += vector
        return result

    def sizes(parts: list[list[Tensor]]) -> ChannelVectors:
        return {
            name: torch.stack([part[index].abs().flatten() for part in parts]).sum(0)
            for index, name in enumerate(elements.names)
        }

    sums = _Sums(
        both=sizes(both),
        alone=sizes(alone),
        reactivated=sizes(after),
        deci=total(elements, [part[:count] for part in both]),
        reri=total(elements, [part[:count] for part in change]),
        channel_deci=total(channels, [part[count:] for part in both]),
        channel_reri=total(channels, [part[count:] for part in change]),
    )
    return sums, shown


def _gradients_of(
    loss: Loss, batches: Sequence[Batch], masked: Masked, parameters: Sequence[Tensor]
) -> list[list[Tensor]]:
    return [gradients(loss(batch, masked), parameters) for batch in batches]


def branch_map(model: FusionModel, partition: Partition, frame: FrameBatch) -> Map:
    """Mean |value| over the channels of one branch's map of a frame, [X, Y]."""
    frame = frame.to(device_of(model))
    with eval_mode(model), torch.no_grad():
        bev = model.camera_branch(frame) if partition == "camera" else model.lidar_branch(frame)
    found: Map = bev[0].abs().mean(dim=0).float().cpu().numpy()
    return found


def _layers(sums: _Sums, partition: Partition) -> tuple[LayerGradients, ...]:
    deci, reri = (sum(float(v.sum()) for v in side.values()) for side in (sums.deci, sums.reri))
    return tuple(
        LayerGradients(
            name=name.removesuffix(".weight"),
            partition=partition,
            weights=vector.numel(),
            both=float(sums.both[name].mean()),
            alone=float(sums.alone[name].mean()),
            reactivated=float(sums.reactivated[name].mean()),
            contribution=float(vector.sum()) / deci,
            redundancy=float(sums.reri[name].sum()) / reri,
        )
        for name, vector in sums.deci.items()
    )


def _channels(sums: _Sums, partition: Partition, count: int = 12) -> tuple[ChannelRedundancy, ...]:
    """The channels whose share of the redundancy exceeds that of the contribution most."""
    names = [(name, index) for name, vector in sums.channel_deci.items() for index in range(len(vector))]
    shares = []
    for side in (sums.channel_deci, sums.channel_reri):
        every = torch.cat([side[name] for name in sums.channel_deci])
        shares.append(every / every.mean())
    deci, reri = shares
    order = torch.argsort(reri - deci, descending=True)[:count].tolist()
    return tuple(
        ChannelRedundancy(
            group=names[place][0],
            channel=names[place][1],
            partition=partition,
            contribution=float(deci[place]),
            redundancy=float(reri[place]),
        )
        for place in order
    )


def _outranked(deci: Tensor, reri: Tensor) -> float:
    top = deci.topk(max(len(deci) // 10, 1)).indices
    return float(((reri / reri.sum())[top] > (deci / deci.sum())[top]).double().mean())


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation; equal values get the mean of their ranks."""
    ranks = [_ranks(values.double().numpy()) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def rank_correlations(scores: Mapping[str, ChannelVectors]) -> dict[str, dict[str, float]]:
    """Spearman's correlation between methods, over all units that each has scored."""
    joined = {label: torch.cat([found[name].flatten() for name in sorted(found)]) for label, found in scores.items()}
    return {a: {b: spearman(joined[a], joined[b]) for b in joined} for a in joined}


def frame_of(model: FusionModel, inputs: Mapping[str, NDArray[np.generic]]) -> FrameBatch:
    return collate([inputs], model.config.geometry)
