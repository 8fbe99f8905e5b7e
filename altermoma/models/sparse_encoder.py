"""SECOND's sparse encoder on index tables: gathers and matrix products, any channel width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altermoma.models.config import LidarConfig
from altermoma.models.ranks import Ranks
from altermoma.ops.functional import gather_conv, rows_to_bev, submanifold_conv
from altermoma.ops.sparse_tables import SUBMANIFOLD, TO_BEV, Triple, segment_names

BN_EPS = 1e-3

Tables = Sequence[Tensor]
"""One table per segment of the output rows."""


class GatherConv(nn.Module):
    """Sparse convolution by table. `weight` is [out, kx, ky, kz, in], as spconv 2 stores it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, *, submanifold: bool = False) -> None:
        super().__init__()
        self.submanifold = submanifold
        self.weight = nn.Parameter(torch.empty(out_channels, *kernel, in_channels))
        fan_in = in_channels * math.prod(kernel)
        # A submanifold neighbourhood is mostly empty, so fewer inputs than fan_in add up.
        nn.init.normal_(self.weight, std=math.sqrt(4.0 / fan_in))

    def forward(self, rows: Tensor, tables: Tables) -> Tensor:
        convolve = submanifold_conv if self.submanifold else gather_conv
        return convolve(rows, tables, self.weight)


class RowNorm(nn.BatchNorm1d):
    """Batch norm over rows. In training, rows that are no voxel (an empty segment has one) are left out."""

    def forward(self, rows: Tensor, sources: Tensor, tables: Tables) -> Tensor:  # type: ignore[override]
        """Rows that a convolution made of `sources` through `tables`, to the same normalised."""
        if not self.training:
            return super().forward(rows)
        none = sources.shape[0]
        voxels = torch.cat([(table < none).any(dim=1) for table in tables]).nonzero()[:, 0]
        if Ranks.here().number(len(voxels), rows.device) < 2:
            # There is no variance of so few. A process that has them takes part in the norm where others have more.
            return F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return torch.zeros_like(rows).index_copy(0, voxels, super().forward(rows.index_select(0, voxels)))


class GatherConvUnit(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, *, submanifold: bool = False) -> None:
        super().__init__(
            GatherConv(in_channels, out_channels, kernel, submanifold=submanifold),
            RowNorm(out_channels, eps=BN_EPS),
        )

    def forward(self, rows: Tensor, tables: Tables) -> Tensor:  # type: ignore[override]
        return F.relu(self[1](self[0](rows, tables), rows, tables))


class GatherBasicBlock(nn.Module):
    """Two submanifold convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = GatherConv(width, width, SUBMANIFOLD.kernel, submanifold=True)
        self.bn1 = RowNorm(width, eps=BN_EPS)
        self.conv2 = GatherConv(width, width, SUBMANIFOLD.kernel, submanifold=True)
        self.bn2 = RowNorm(width, eps=BN_EPS)

    def forward(self, rows: Tensor, tables: Tables) -> Tensor:
        out = F.relu(self.bn1(self.conv1(rows, tables), rows, tables))
        return F.relu(self.bn2(self.conv2(out, tables), out, tables) + rows)


class SparseEncoder(nn.Module):
    """BEVFusionSparseEncoder. Voxel features [N, 5] and tables -> BEV [B, C * Z, X, Y]."""

    def __init__(self, config: LidarConfig, point_features: int, bev_shape: tuple[int, int]) -> None:
        super().__init__()
        self.bev_shape = bev_shape
        self.conv_input = GatherConvUnit(point_features, config.base, SUBMANIFOLD.kernel, submanifold=True)
        self.encoder_layers = nn.ModuleDict()
        channels = config.base
        for index, widths in enumerate(config.stages):
            stage = nn.ModuleList()
            last_stage = index == len(config.stages) - 1
            for width in widths if last_stage else widths[:-1]:
                stage.append(GatherBasicBlock(width))
            if not last_stage:
                stage.append(GatherConvUnit(channels, widths[-1], SUBMANIFOLD.kernel))
            channels = widths[-1]
            self.encoder_layers[f"encoder_layer{index + 1}"] = stage
        self.conv_out = GatherConvUnit(channels, config.channels, TO_BEV.kernel)

    def forward(self, voxels: Tensor, tables: Mapping[str, Tensor], batch_size: int) -> Tensor:
        def segments(table: str) -> Tables:
            return [tables[name] for name in segment_names(table)]

        rows = self.conv_input(voxels, segments("subm_table_0"))
        for level, stage in enumerate(self.encoder_layers.values()):
            for unit in stage:  # type: ignore[attr-defined]
                strided = isinstance(unit, GatherConvUnit)
                rows = unit(rows, segments(f"down_table_{level}" if strided else f"subm_table_{level}"))
        rows = self.conv_out(rows, [tables["out_table"]])
        return rows_to_bev(rows, tables["bev_table"], self.bev_shape, batch_size)
