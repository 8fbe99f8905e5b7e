"""What every image backbone offers the neck."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Image backbone.

    Attributes:
        out_channels: channels of each feature that `forward` gives.
    """

    out_channels: list[int]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """float [N, 3, H, W] -> features at strides 8, 16 and 32, each [N, C, h, w]."""
