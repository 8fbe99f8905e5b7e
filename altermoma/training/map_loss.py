"""Loss of BEVFusion's map segmentation head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor

from altermoma.data.map_masks import MAP_TRUTH, no_masks
from altermoma.errors import DataError
from altermoma.models.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from altermoma.models.batch import FrameBatch
    from altermoma.models.head import HeadOutputs

FOCUS = 2.0
"""Exponent of the focal loss."""


def map_loss(logits_bcxy: Tensor, truth_bcxy: Tensor, kind: Literal["focal", "xent"] = "focal") -> Tensor:
    """Sum over classes of each class's mean loss over cells, as mit-han-lab's BEVSegmentationHead.

    Args:
        logits_bcxy: of the map head.
        truth_bcxy: 1 (or True) in cells that belong to the class, 0 elsewhere; classes may overlap.
        kind: focal loss (1 - p)^2 * cross-entropy without class weights, or plain cross-entropy; p is the probability
            of the true answer.

    Raises:
        DataError: shapes differ.
    """
    if logits_bcxy.shape != truth_bcxy.shape:
        raise DataError(f"map truth of shape {list(truth_bcxy.shape)}", expected=str(list(logits_bcxy.shape)))
    logits, truth = logits_bcxy.float(), truth_bcxy.float()
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    if kind == "focal":
        wrong = (logits * (1 - 2 * truth)).sigmoid()
        loss = loss * wrong**FOCUS
    return loss.mean(dim=(0, 2, 3)).sum()


def map_term(outputs: HeadOutputs, batch: FrameBatch, ranks: Ranks = ALONE) -> Tensor | None:
    """The map loss of a batch that carries masks; None for a model without a map head.

    Processes that share a batch have as many frames each; their losses add up to that of the whole batch.

    Raises:
        DataError: a map head and no masks: it would be trained, or its channels scored, by nothing.
    """
    logits = getattr(outputs, "map", None)
    if logits is None:
        return None
    if MAP_TRUTH not in batch.tensors:
        raise no_masks()
    return map_loss(logits, batch[MAP_TRUTH]) / ranks.size
