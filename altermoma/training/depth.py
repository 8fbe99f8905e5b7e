"""Depth supervision of the camera branch: LiDAR returns say which depth bin a pixel's content lies in (BEVDepth).

An aid for training from scratch. It is no part of the task loss, so pruning scores do not see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from altermoma.geometry import Geometry
from altermoma.models.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel


def depth_loss(logits_ndhw: Tensor, depth_n1hw: Tensor, geometry: Geometry, ranks: Ranks = ALONE) -> Tensor:
    """Mean cross-entropy over the feature cells that hold a LiDAR return; zero where none does.

    Args:
        logits_ndhw: of the depth bins, [N, D, h, w].
        depth_n1hw: sparse depth images, metres, 0 where there is no return, [N, 1, H, W].
        geometry: bins and stride.
        ranks: the processes that share the batch: the mean is over the cells of all of them, the losses add up.
    """
    far = torch.finfo(depth_n1hw.dtype).max
    filled = torch.where(depth_n1hw > 0, depth_n1hw, far)
    # The nearest return of a cell is what its picture shows.
    nearest = -F.max_pool2d(-filled, geometry.image.feature_stride)[:, 0]
    start, _, step = geometry.depth_bins
    bins = ((nearest - start) / step).round()
    known = (bins >= 0) & (bins < geometry.depth_count)
    share = 1.0
    if ranks.size > 1:
        here = known.sum()
        share = float(here / ranks.total(here).clamp(min=1))
    if not bool(known.any()):
        return logits_ndhw.sum() * 0.0
    picked = logits_ndhw.permute(0, 2, 3, 1)[known]
    return F.cross_entropy(picked, bins[known].long()) * share


@contextmanager
def captured_depth_logits(model: FusionModel) -> Iterator[list[Tensor]]:
    """Collects the depth logits [N, D, h, w] of every forward pass inside."""
    found: list[Tensor] = []
    bins = model.view_transform.depth_bins

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        found.append(output[:, :bins])

    handle = model.view_transform.depthnet.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
