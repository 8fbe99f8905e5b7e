"""BEVFusion's map segmentation: which ground cells are road, crossing, walkway, stop line, car park or divider."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from altermoma.geometry import Geometry
from altermoma.models.config import MapConfig


class GridTransform(nn.Module):
    """Bilinear resampling of a map from one metric grid to another, zeros outside of the first.

    Both grids are parallel to the axes and fixed, so that it falls apart into x and y: two rows are picked per output
    row and mixed with fixed weights. Equals F.grid_sample(mode="bilinear", align_corners=False) of mit-han-lab's
    BEVGridTransform, whose ONNX form some TensorRT versions sample wrongly and others only in fp32.
    """

    below_x: Tensor
    below_y: Tensor
    above_x: Tensor
    above_y: Tensor
    weights_x: Tensor
    weights_y: Tensor

    def __init__(self, geometry: Geometry, config: MapConfig) -> None:
        super().__init__()
        low, high = geometry.point_range[:2], geometry.point_range[3:5]
        for axis, name in enumerate("xy"):
            scope = low[axis], high[axis], geometry.bev_shape[axis]
            below, above, weights = _mixture(*scope, config)
            self.register_buffer(f"below_{name}", below, persistent=False)
            self.register_buffer(f"above_{name}", above, persistent=False)
            self.register_buffer(f"weights_{name}", weights, persistent=False)

    def forward(self, bev: Tensor) -> Tensor:
        """[B, C, X, Y] -> [B, C, config.cells, config.cells]."""
        low, high = self.weights_x[0, :, None], self.weights_x[1, :, None]
        rows = bev.index_select(2, self.below_x) * low + bev.index_select(2, self.above_x) * high
        low, high = self.weights_y[0], self.weights_y[1]
        mixed: Tensor = rows.index_select(3, self.below_y) * low + rows.index_select(3, self.above_y) * high
        return mixed


def _mixture(low: float, high: float, cells: int, config: MapConfig) -> tuple[Tensor, Tensor, Tensor]:
    """For each output cell the input cells on both sides of its centre, and their weights [2, output cells]."""
    centres = config.low + config.cell * (torch.arange(config.cells, dtype=torch.float64) + 0.5)
    position = (centres - low) / (high - low) * cells - 0.5
    below = position.floor()
    share = position - below
    sides = torch.stack([below, below + 1])
    weights = torch.stack([1 - share, share]) * ((sides >= 0) & (sides < cells))
    index = sides.clamp(0, cells - 1).long()
    return index[0], index[1], weights.float()


class MapHead(nn.Module):
    """BEVSegmentationHead: [B, C, X, Y] -> logits [B, classes, cells, cells]. `classifier` is named as there."""

    def __init__(self, in_channels: int, geometry: Geometry, config: MapConfig) -> None:
        super().__init__()
        self.transform = GridTransform(geometry, config)
        width = config.hidden or in_channels
        self.classifier = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, config.classes, 1),
        )  # fmt: skip

    def forward(self, bev: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(self.transform(bev)))
