"""From image features to weighted depth bins: the LSS neck and DepthLSS of BEVFusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altermoma.models.config import CameraConfig
from altermoma.ops.functional import cells_to_map, pool_bev


class ConvModule(nn.Module):
    """Convolution, batch norm, ReLU with mmcv's names."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class LssNeck(nn.Module):
    """GeneralizedLSSFPN: merges coarse features into the finest map, top down."""

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        laterals, convs = [], []
        for level in range(len(in_channels) - 1):
            above = in_channels[-1] if level == len(in_channels) - 2 else out_channels
            laterals.append(ConvModule(in_channels[level] + above, out_channels, 1))
            convs.append(ConvModule(out_channels, out_channels, 3))
        self.lateral_convs = nn.ModuleList(laterals)
        self.fpn_convs = nn.ModuleList(convs)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for level in range(len(features) - 2, -1, -1):
            finer = features[level]
            raised = F.interpolate(x, size=finer.shape[2:], mode="bilinear", align_corners=False)
            x = self.fpn_convs[level](self.lateral_convs[level](torch.cat([finer, raised], dim=1)))
        return x


class BevPool(nn.Module):
    """altermoma.ops.functional.pool_bev as a module: its work has a name in graphs and in counts of FLOPs."""

    def forward(
        self,
        depth_weights: Tensor,
        pixel_features: Tensor,
        tables: Sequence[Tensor],
        size: int,
        shape_xy: tuple[int, int],
    ) -> Tensor:
        """Depth weights [N, h, w, D] and features [N, h, w, C] of `size` frames -> maps [size, C, X, Y]."""
        cells = pool_bev(depth_weights, pixel_features, tables)
        return cells_to_map(cells.reshape(size, *shape_xy, cells.shape[1]))


class DepthLift(nn.Module):
    """DepthLSSTransform without its pooling: picture features and LiDAR depth give a depth distribution per pixel.

    Named `view_transform` in the model, as in mmdet3d. The frustum lives in the pooling tables, not in the weights.
    """

    def __init__(self, in_channels: int, depth_bins: int, config: CameraConfig) -> None:
        super().__init__()
        first, second, third = config.depth_widths
        self.depth_bins = depth_bins
        self.dtransform = nn.Sequential(
            nn.Conv2d(1, first, 1), nn.BatchNorm2d(first), nn.ReLU(),
            nn.Conv2d(first, second, 5, stride=4, padding=2), nn.BatchNorm2d(second), nn.ReLU(),
            nn.Conv2d(second, third, 5, stride=2, padding=2), nn.BatchNorm2d(third), nn.ReLU(),
        )  # fmt: skip
        width = config.depthnet
        self.depthnet = nn.Sequential(
            nn.Conv2d(in_channels + third, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, depth_bins + config.channels, 1),
        )  # fmt: skip
        self.pooling = BevPool()
        self.downsample = _downsample(config.channels, config.downsample)

    def forward(self, features: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """As `lift`, under the module's name in a trace. In the model, pooling and downsampling are its children too,
        and FLOPs are counted by who calls whom."""
        return self.lift(features, depth)

    def lift(self, features: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, h, w] and [N, 1, H, W] metres -> depth weights [N, h, w, D] and pixel features [N, h, w, C]."""
        x = self.depthnet(torch.cat([self.dtransform(depth), features], dim=1))
        # Bins last: a softmax over contiguous values is several times faster than over strided ones.
        logits, features = x.permute(0, 2, 3, 1).split([self.depth_bins, x.shape[1] - self.depth_bins], dim=-1)
        return logits.softmax(dim=-1), features


def _downsample(channels: int, factor: int) -> nn.Module:
    if factor == 1:
        return nn.Identity()
    layers: list[nn.Module] = []
    for stride in (1, factor, 1):
        layers += [nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)
