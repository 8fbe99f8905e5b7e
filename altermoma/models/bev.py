"""After the fuser: SECOND's dense backbone and its FPN, with mmdet3d's names."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from altermoma.models.config import BevConfig

BN_EPS = 1e-3


class ConvFuser(nn.Sequential):
    """Concatenates camera and LiDAR BEV, then one convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
        )

    def forward(self, camera_bev: Tensor, lidar_bev: Tensor) -> Tensor:  # type: ignore[override]
        return cast(Tensor, super().forward(torch.cat([camera_bev, lidar_bev], dim=1)))  # type: ignore[no-untyped-call]


class Second(nn.Module):
    """Plain convolutions at falling resolution; returns every level."""

    def __init__(self, in_channels: int, config: BevConfig) -> None:
        super().__init__()
        blocks = []
        for width, count, stride in zip(config.widths, config.layers, config.strides, strict=True):
            layers: list[nn.Module] = []
            for index in range(count + 1):
                layers += [
                    nn.Conv2d(in_channels, width, 3, stride if index == 0 else 1, 1, bias=False),
                    nn.BatchNorm2d(width, eps=BN_EPS),
                    nn.ReLU(),
                ]
                in_channels = width
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        return levels


class SecondFpn(nn.Module):
    """Brings every level to the grid of stride `out_stride` and concatenates."""

    def __init__(self, config: BevConfig, out_stride: int = 1) -> None:
        super().__init__()
        deblocks = []
        stride = 1
        for in_channels, out_channels, step in zip(config.widths, config.neck, config.strides, strict=True):
            stride *= step
            resample = _resampling(in_channels, out_channels, stride, out_stride)
            deblocks.append(nn.Sequential(resample, nn.BatchNorm2d(out_channels, eps=BN_EPS), nn.ReLU()))
        self.deblocks = nn.ModuleList(deblocks)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return torch.cat([deblock(level) for deblock, level in zip(self.deblocks, levels, strict=True)], dim=1)


def _resampling(in_channels: int, out_channels: int, stride: int, out_stride: int) -> nn.Module:
    """From a map of one stride to another's grid: a transposed convolution up, a strided one down."""
    if stride > out_stride:
        scale = stride // out_stride
        return nn.ConvTranspose2d(in_channels, out_channels, scale, scale, bias=False)
    scale = out_stride // stride
    return nn.Conv2d(in_channels, out_channels, scale, scale, bias=False)
