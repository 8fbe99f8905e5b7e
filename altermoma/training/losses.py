"""TransFusion's training loss as BEVFusion configures it for nuScenes, for one batch of head outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from altermoma.frames import Boxes
from altermoma.geometry import Geometry
from altermoma.models.ranks import ALONE, Ranks
from altermoma.training.map_loss import map_term
from altermoma.training.targets import FOCAL_ALPHA, FOCAL_GAMMA, MatchCosts, Matching, encode, heatmap_targets, match

if TYPE_CHECKING:
    from altermoma.models.batch import FrameBatch
    from altermoma.models.fusion import FusionModel
    from altermoma.models.head import HeadOutputs

CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the three parts, as in BEVFusion's configuration."""

    heatmap: float = 1.0
    classes: float = 1.0
    boxes: float = 0.25


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Scalar tensors, already weighted: total = heatmap + classes + boxes and the auxiliary terms there are.

    Attributes:
        matched: queries that are responsible for a box, over the batch.
        overlap: mean 3D IoU of the matched queries, a health figure without gradient.
    """

    total: Tensor
    heatmap: Tensor
    classes: Tensor
    boxes: Tensor
    matched: int
    overlap: float
    depth: Tensor | None = None
    teacher: Tensor | None = None
    map: Tensor | None = None

    def plus(self, **auxiliary: Tensor) -> LossTerms:
        """The same terms with the named further losses (`depth`, `teacher`, `map`) added to the total."""
        total = self.total
        for term in auxiliary.values():
            total = total + term
        return replace(self, total=total, **auxiliary)  # type: ignore[arg-type]

    def parts(self) -> dict[str, float]:
        """Plain numbers for a log."""
        scalars = {name: float(getattr(self, name).detach()) for name in ("total", "heatmap", "classes", "boxes")}
        auxiliary = {"depth": self.depth, "teacher": self.teacher, "map": self.map}
        scalars |= {name: float(term.detach()) for name, term in auxiliary.items() if term is not None}
        return scalars | {"matched": float(self.matched), "overlap": self.overlap}


def gaussian_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over cells of CornerNet's focal loss (alpha 2, gamma 4) against Gaussian targets; same shapes.

    Written on logits: mmdet3d clips the sigmoid to [1e-4, 1 - 1e-4], which cuts the gradient of cells beyond.
    """
    score = logits.sigmoid()
    positive = -F.logsigmoid(logits) * (1 - score).square() * target.eq(1)
    negative = -F.logsigmoid(-logits) * score.square() * (1 - target).pow(4)
    return (positive + negative).sum()


def sigmoid_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of the focal loss (alpha 0.25, gamma 2) of independent classes; target 0 or 1, same shape as the logits."""
    score = logits.sigmoid()
    wrong = score * (1 - target) + (1 - score) * target
    balance = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (cross_entropy * balance * wrong.pow(FOCAL_GAMMA)).sum()


def box_codes(outputs: HeadOutputs) -> Tensor:
    """Predicted box codes [B, P, 10], in the order of `targets.encode`."""
    parts = (outputs.center, outputs.height, outputs.dim, outputs.rot, outputs.vel)
    return torch.cat(parts, dim=1).transpose(1, 2)


def detection_loss(
    outputs: HeadOutputs,
    truths: Sequence[Boxes],
    geometry: Geometry,
    *,
    weights: LossWeights | None = None,
    costs: MatchCosts | None = None,
    ranks: Ranks = ALONE,
) -> LossTerms:
    """Heatmap, class and box loss of a batch.

    Where several processes share a batch, each gets its part of the loss: what it found, over what all of them matched.

    Args:
        outputs: of the head, B frames and P queries.
        truths: B sets of true boxes, LiDAR frame.
        geometry: grid of the outputs.
        weights: of the loss parts; BEVFusion's where left out.
        costs: of the assignment; BEVFusion's where left out.
        ranks: the processes that share the batch; their losses add up.
    """
    weights, costs = weights or LossWeights(), costs or MatchCosts()
    codes_bp = box_codes(outputs)
    matchings = _match_all(outputs.heatmap, codes_bp, truths, geometry, costs)
    matched = sum(len(m.queries) for m in matchings)
    everywhere = max(ranks.number(matched, codes_bp.device), 1)
    heatmap = _heatmap_loss(outputs.dense_heatmap, list(truths), geometry, ranks)
    classes = _class_loss(outputs.heatmap, matchings, truths) / everywhere
    boxes = _box_loss(codes_bp, matchings, truths, geometry) / everywhere
    heatmap, classes, boxes = weights.heatmap * heatmap, weights.classes * classes, weights.boxes * boxes
    overlaps = np.concatenate([m.overlaps for m in matchings]) if matched else np.zeros(1)
    return LossTerms(
        total=heatmap + classes + boxes,
        heatmap=heatmap,
        classes=classes,
        boxes=boxes,
        matched=matched,
        overlap=float(overlaps.mean()),
    )


def _match_all(
    logits_bcp: Tensor, codes_bp: Tensor, truths: Sequence[Boxes], geometry: Geometry, costs: MatchCosts
) -> list[Matching]:
    logits = logits_bcp.detach().double().cpu().numpy()
    codes = codes_bp.detach().double().cpu().numpy()
    return [
        match(logits_cp, codes_p, truth, geometry, costs)
        for logits_cp, codes_p, truth in zip(logits, codes, truths, strict=True)
    ]


def _heatmap_loss(logits_bcxy: Tensor, truths: list[Boxes], geometry: Geometry, ranks: Ranks) -> Tensor:
    target = torch.from_numpy(heatmap_targets(truths, geometry, logits_bcxy.shape[1])).to(logits_bcxy)
    return gaussian_focal_loss(logits_bcxy, target) / ranks.total(target.eq(1).sum()).clamp(min=1)


def _class_loss(logits_bcp: Tensor, matchings: list[Matching], truths: Sequence[Boxes]) -> Tensor:
    target = np.zeros(tuple(logits_bcp.shape))
    for index, (matching, truth) in enumerate(zip(matchings, truths, strict=True)):
        target[index, truth.labels_m[matching.boxes], matching.queries] = 1
    return sigmoid_focal_loss(logits_bcp, torch.from_numpy(target).to(logits_bcp))


def _box_loss(codes_bp: Tensor, matchings: list[Matching], truths: Sequence[Boxes], geometry: Geometry) -> Tensor:
    frames = np.concatenate([np.full(len(m.queries), index) for index, m in enumerate(matchings)])
    queries = np.concatenate([m.queries for m in matchings])
    target = np.concatenate([encode(t, geometry)[m.boxes] for m, t in zip(matchings, truths, strict=True)])
    known = np.isfinite(target)
    device = codes_bp.device
    predicted = codes_bp[torch.from_numpy(frames).to(device), torch.from_numpy(queries).to(device)]
    error = (predicted - torch.from_numpy(np.where(known, target, 0.0)).to(predicted)).abs()
    return (error * torch.from_numpy(known * np.asarray(CODE_WEIGHTS)).to(predicted)).sum()


def task_loss(
    model: FusionModel,
    batch: FrameBatch,
    truths: Sequence[Boxes],
    masked: Literal["none", "camera", "lidar"] = "none",
) -> Tensor:
    """Scalar loss L(mask; D) of the model on a batch, as the pruning indicators use it; the model's mode is kept.

    With a map head it is the sum of both tasks' losses.
    """
    outputs = model(batch, masked=masked)
    detection, ground = detection_loss(outputs, truths, model.config.geometry).total, map_term(outputs, batch)
    return detection if ground is None else detection + ground
