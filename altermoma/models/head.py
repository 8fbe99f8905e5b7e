"""TransFusion head: proposals from a heatmap, one decoder layer, one small branch per box property."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altermoma.models.attention import DecoderLayer
from altermoma.models.camera import ConvModule
from altermoma.models.config import HeadConfig

BRANCHES = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
HEATMAP_PRIOR = -2.19
"""Bias that starts every class at a score of 0.1."""


@dataclass(frozen=True, kw_only=True)
class HeadOutputs:
    """Raw predictions of B frames with P proposals. Positions in BEV cells, x first; metres = cell * size + minimum.

    Attributes:
        dense_heatmap: logits [B, classes, X, Y].
        query_labels: int64 [B, P]; query_positions: [B, P, 2], cell centres.
        query_scores: [B, classes, P], heatmap score where the query sits.
        center: [B, 2, P] cells; height: [B, 1, P] metres, gravity centre; dim: [B, 3, P] log of l, w, h in metres;
        rot: [B, 2, P] sine, cosine; vel: [B, 2, P] m/s; heatmap: class logits [B, classes, P].
    """

    dense_heatmap: Tensor
    query_labels: Tensor
    query_positions: Tensor
    query_scores: Tensor
    center: Tensor
    height: Tensor
    dim: Tensor
    rot: Tensor
    vel: Tensor
    heatmap: Tensor

    @property
    def chosen(self) -> Tensor:
        """Entries [B, P] of the flat heatmap [class, x, y] that are the proposals."""
        rows, columns = self.dense_heatmap.shape[2:]
        cells = self.query_positions.long()
        return (self.query_labels * rows + cells[..., 0]) * columns + cells[..., 1]


@dataclass(frozen=True, kw_only=True)
class MapOutputs(HeadOutputs):
    """Of a model with a map head, too: logits [B, classes, cells, cells], x first (`models.config.MapConfig`)."""

    map: Tensor


class _ConvModule1d(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class TransFusionHead(nn.Module):
    """BEV [B, C, X, Y] -> HeadOutputs."""

    bev_positions: Tensor

    def __init__(self, in_channels: int, bev_shape: tuple[int, int], config: HeadConfig) -> None:
        super().__init__()
        embed = config.embed
        self.config = config
        self.shared_conv = nn.Conv2d(in_channels, embed, 3, padding=1)
        self.heatmap_head = nn.Sequential(ConvModule(embed, embed, 3), nn.Conv2d(embed, config.classes, 3, padding=1))
        self.class_encoding = nn.Conv1d(config.classes, embed, 1)
        self.decoder = nn.ModuleList([DecoderLayer(embed, config.attention_heads, config.ffn)])
        branches = BRANCHES | {"heatmap": config.classes}
        self.prediction_heads = nn.ModuleList(
            [
                nn.ModuleDict(
                    {
                        name: nn.Sequential(_ConvModule1d(embed, config.branch), nn.Conv1d(config.branch, size, 1))
                        for name, size in branches.items()
                    }
                )
            ]
        )
        for final in (self.heatmap_head[1], self.prediction_heads[0]["heatmap"][1]):  # type: ignore[index]
            nn.init.constant_(cast(Tensor, final.bias), HEATMAP_PRIOR)
        x, y = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) + 0.5 for n in bev_shape), indexing="ij")
        positions = torch.stack([x.reshape(-1), y.reshape(-1)], dim=-1)[None]
        self.register_buffer("bev_positions", positions, persistent=False)

    def forward(self, bev: Tensor, chosen: Tensor | None = None) -> HeadOutputs:
        """`chosen`: entries [B, P] of the flat heatmap [class, x, y] that are proposals instead of the highest."""
        features = self.shared_conv(bev)
        dense_heatmap = self.heatmap_head(features)
        cells = features.flatten(2).transpose(1, 2)
        labels, positions, query, scores = self._propose(dense_heatmap, cells, chosen)
        query = self.decoder[0](query, cells, positions, self.bev_positions)
        query_bcp = query.transpose(1, 2)
        found = {name: branch(query_bcp) for name, branch in self.prediction_heads[0].items()}  # type: ignore[operator]
        found["center"] = found["center"] + positions.transpose(1, 2)
        return HeadOutputs(
            dense_heatmap=dense_heatmap, query_labels=labels, query_positions=positions, query_scores=scores, **found
        )

    def _propose(
        self, dense_heatmap: Tensor, cells: Tensor, chosen: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The P highest local maxima over all classes: labels, positions, features with class encoding, scores."""
        scores_bks = dense_heatmap.detach().sigmoid()
        top = chosen
        if top is None:
            peaks = (scores_bks * self._is_peak(scores_bks)).flatten(1)
            top = peaks.topk(self.config.proposals, dim=1).indices
        cell_count = cells.shape[1]
        labels = top // cell_count
        index = top - labels * cell_count
        scores = scores_bks.flatten(2).gather(2, index[:, None].expand(-1, self.config.classes, -1))
        features = cells.gather(1, index[..., None].expand(-1, -1, cells.shape[2]))
        positions = self.bev_positions[0][index]
        # A 1x1 convolution over one-hot labels is a row look-up, which spares the one-hot tensor. As an embedding: on a
        # CPU the backward of plain indexing adds to a row in the order that threads happen to run.
        rows = F.embedding(labels, self.class_encoding.weight[:, :, 0].transpose(0, 1))
        encoding = rows + cast(Tensor, self.class_encoding.bias)
        return labels, positions, features + encoding, scores

    def margins(self, scores: Tensor) -> Tensor:
        """How far each score lies above its highest neighbour: above zero at the local maxima that may be proposals.

        [B, classes, X, Y] -> the same. Minus infinity on the border, infinity for classes smaller than a cell.
        """
        rows, columns = scores.shape[2:]
        wide = F.pad(scores, (1, 1, 1, 1), value=-math.inf)
        steps = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
        around = torch.stack([wide[:, :, i : i + rows, j : j + columns] for i, j in steps]).amax(dim=0)
        inner = (scores - around)[:, :, 1:-1, 1:-1]
        margins = F.pad(inner, (1, 1, 1, 1), value=-math.inf)
        margins[:, list(self.config.point_classes)] = math.inf
        return margins

    def _is_peak(self, scores: Tensor) -> Tensor:
        """1.0 at local maxima of 3 x 3 cells off the border; everywhere for classes smaller than a cell."""
        inner = F.max_pool2d(scores, 3, stride=1)
        peak = F.pad((scores[:, :, 1:-1, 1:-1] == inner).to(scores.dtype), (1, 1, 1, 1))
        always = torch.zeros(self.config.classes, 1, 1, device=scores.device, dtype=scores.dtype)
        always[list(self.config.point_classes)] = 1.0
        return torch.maximum(peak, always)
