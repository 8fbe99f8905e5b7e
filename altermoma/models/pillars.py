"""PointPillars' encoder on index tables: a PointNet per pillar, a maximum over its points, a dense map. Any width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altermoma.models.config import PillarConfig
from altermoma.models.half import widened
from altermoma.models.ranks import Ranks
from altermoma.ops.functional import rows_to_bev

BN_EPS = 1e-3
BN_MOMENTUM = 0.01


class SlotNorm(nn.BatchNorm1d):
    """Batch norm over the slots of all pillars, computed on rows: a row counts once for every slot that shows it.

    So that training sees the statistics of the reference, which normalises [pillars, slots] with its empty slots.
    """

    def forward(self, rows_rc: Tensor, table_nt: Tensor) -> Tensor:  # type: ignore[override]
        ranks, rows = Ranks.here(), widened(rows_rc)
        # A process without rows takes part in the sums where others have some.
        total = ranks.number(table_nt.numel(), rows.device) if self.training else 0
        if not total:
            return F.batch_norm(
                rows_rc, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        slots_r1 = torch.bincount(table_nt.flatten(), minlength=len(rows))[:, None].to(rows.dtype)
        mean = ranks.total((slots_r1 * rows).sum(dim=0)) / total
        variance = ranks.total((slots_r1 * (rows - mean).square()).sum(dim=0)) / total
        self._remember(mean.detach(), variance.detach() * total / max(total - 1, 1))
        normal = (rows - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normal.to(rows_rc.dtype)

    def _remember(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, float(self.momentum or 0.0))
        self.running_var.lerp_(unbiased_variance, float(self.momentum or 0.0))


class PillarLayer(nn.Module):
    """Linear layer, batch norm, ReLU on rows; and the maximum over each pillar's slots."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = SlotNorm(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM)

    def forward(self, rows_rc: Tensor, table_nt: Tensor) -> tuple[Tensor, Tensor]:
        """float [R, C], int [N, T] -> rows [R, O] and pillars [N, O]."""
        rows = F.relu(self.norm(self.linear(rows_rc), table_nt))
        slots = rows.index_select(0, table_nt.reshape(-1)).reshape(-1, table_nt.shape[1], rows.shape[1])
        return rows, slots.amax(dim=1)


class PillarEncoder(nn.Module):
    """PillarFeatureNet and PointPillarsScatter. Decorated points and tables (`ops.pillars`) -> BEV [B, C, X, Y].

    Every layer but the last puts half its width out per point and the other half, their maximum, per pillar, as in
    mmdet3d and mit-han-lab/bevfusion, whose parameter names these are.
    """

    inputs = ("points", "point_pillar", "pillar_table", "bev_table")

    def __init__(self, config: PillarConfig, in_channels: int, bev_shape: tuple[int, int]) -> None:
        super().__init__()
        self.bev_shape = bev_shape
        *inner, last = config.widths
        units = [width // 2 for width in inner] + [last]
        reads = [in_channels, *(2 * unit for unit in units)]
        self.pfn_layers = nn.ModuleList(PillarLayer(c, o) for c, o in zip(reads, units, strict=False))

    def forward(self, tensors: Mapping[str, Tensor], batch_size: int) -> Tensor:
        rows, table = tensors["points"], tensors["pillar_table"]
        last = len(self.pfn_layers) - 1
        for index, layer in enumerate(self.pfn_layers):
            rows, pillars = layer(rows, table)
            if index < last:
                rows = torch.cat([rows, pillars.index_select(0, tensors["point_pillar"])], dim=1)
        return rows_to_bev(pillars, tensors["bev_table"], self.bev_shape, batch_size)
