"""The dense model as a teacher of the pruned one while it is fine-tuned.

A pruned model keeps named channels of the dense one, so that its maps can be held against the teacher's channel by
channel: the inputs of the fuser (both branches) and of the head, and the heatmap. A few hundred steps then bring back
what the labels alone need thousands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from altermoma.models.half import full_precision, widened
from altermoma.models.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from altermoma.models.batch import FrameBatch
    from altermoma.models.fusion import FusionModel


@dataclass
class Maps:
    """What one forward pass showed: fuser inputs [B, C, X, Y], head inputs [B, C, X, Y], heatmap logits."""

    fuser: list[Tensor] = field(default_factory=list)
    head: list[Tensor] = field(default_factory=list)
    heatmap: list[Tensor] = field(default_factory=list)


@contextmanager
def captured_maps(model: FusionModel) -> Iterator[Maps]:
    """Collects the maps of the forward passes inside."""
    maps = Maps()

    def at_fuser(_module: Any, inputs: tuple[Tensor, Tensor]) -> None:
        maps.fuser.append(torch.cat(inputs, dim=1))

    def at_head(_module: Any, inputs: tuple[Tensor], outputs: Any) -> None:
        maps.head.append(inputs[0])
        maps.heatmap.append(outputs.dense_heatmap)

    handles = [
        model.fusion_layer.register_forward_pre_hook(at_fuser),
        model.bbox_head.register_forward_hook(at_head),
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The dense model, and which of its channels the student has.

    Attributes:
        model: in eval mode, not trained.
        fuser_channels, head_channels: dense channels that the student kept at the inputs of fuser and head, int64.
    """

    model: FusionModel
    fuser_channels: Tensor
    head_channels: Tensor

    def loss(self, batch: FrameBatch, student: Maps, ranks: Ranks = ALONE) -> Tensor:
        """Relative squared error of both maps plus the heatmap's quality focal loss per teacher peak; a scalar.

        Processes that share a batch have as many frames each; their losses add up to that of the whole batch.
        """
        with torch.no_grad(), captured_maps(self.model) as shown:
            self.model(batch)
        heatmap = student.heatmap[0]
        with full_precision(heatmap):
            fuser = _relative_error(student.fuser[0], shown.fuser[0][:, self.fuser_channels], ranks)
            head = _relative_error(student.head[0], shown.head[0][:, self.head_channels], ranks)
            return fuser + head + _quality_focal(heatmap, shown.heatmap[0].sigmoid(), ranks)


def _relative_error(found: Tensor, wanted: Tensor, ranks: Ranks) -> Tensor:
    found, wanted = widened(found), widened(wanted)
    size = ranks.total(wanted.square().mean()) / ranks.size
    return (found - wanted).square().mean() / ranks.size / size.clamp(min=1e-8)


def _quality_focal(logits: Tensor, target: Tensor, ranks: Ranks) -> Tensor:
    """Generalised focal loss (Li et al. 2020) against soft targets, over the teacher's expected number of objects."""
    difference = (logits.sigmoid() - target).square()
    loss = difference * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return loss.sum() / ranks.total(target.square().sum()).clamp(min=1.0)
