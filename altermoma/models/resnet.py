"""ResNet with torchvision's and mmdet's parameter names."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from altermoma.models.backbone import Backbone
from altermoma.models.config import ResNetConfig


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the grid but for its stride."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class ResNet(Backbone):
    """ResNet of basic blocks or bottlenecks; its features are the last three stages'."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        block = BasicBlock if config.block == "basic" else Bottleneck
        self.conv1 = conv(3, config.stem, 7, 2)
        self.bn1 = nn.BatchNorm2d(config.stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = config.stem
        widths: list[int] = []
        for stage, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            layers: list[nn.Module] = []
            for index in range(count):
                layers.append(block(channels, width, 2 if stage > 0 and index == 0 else 1))
                channels = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            widths.append(channels)
        self.out_channels = widths[1:]

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        features = []
        for stage in range(1, 5):
            x = cast(Tensor, self.get_submodule(f"layer{stage}")(x))
            features.append(x)
        return features[1:]
