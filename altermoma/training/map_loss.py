"""Loss of BEVFusion's map segmentation head."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from altermoma.errors import DataError

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
