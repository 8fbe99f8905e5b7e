"""Swin transformer with mmdet's parameter names, for pictures of one fixed size (its windows are constants).

Features are [N, h, w, C] throughout. Pruned widths are read from the layers: hidden widths of the feed-forward
networks, and per head the query-key and the value dimensions. `scale` stays that of the dense heads.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altermoma.models.backbone import Backbone
from altermoma.models.config import SwinConfig

MASKED = -100.0
"""Added to scores between regions that only the cyclic shift brought together, as mmdet does."""


def relative_positions(window: int) -> Tensor:
    """Row of the bias table for each pair of a window's places, int64 [window ** 2, window ** 2]."""
    steps = torch.arange(window)
    places = (steps[:, None] * (2 * window - 1) + steps).reshape(-1)
    return (places[:, None] + places).flip(1).contiguous()


def shift_mask(grid_hw: tuple[int, int], window: int, shift: int) -> Tensor:
    """Additive mask of every window of a shifted grid, float [windows, window ** 2, window ** 2]."""
    height, width = grid_hw
    regions_hw = torch.zeros(height, width)
    edges = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in edges for columns in edges):
        regions_hw[rows, columns] = number
    regions_wl = to_windows(regions_hw[None, :, :, None], window)[..., 0]
    return MASKED * (regions_wl[:, :, None] != regions_wl[:, None, :]).float()


def to_windows(x_nhwc: Tensor, window: int) -> Tensor:
    """[N, h, w, C] -> [N * windows, window ** 2, C], row by row of the grid."""
    _, height, width, channels = x_nhwc.shape
    x = x_nhwc.reshape(-1, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def from_windows(x_wlc: Tensor, grid_hw: tuple[int, int], window: int) -> Tensor:
    """Inverse of `to_windows`."""
    height, width = grid_hw
    x = x_wlc.reshape(-1, height // window, width // window, window, window, x_wlc.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x_wlc.shape[-1])


def rolled(x_nhwc: Tensor, shift: int) -> Tensor:
    """Moves the grid `shift` cells up and left; what leaves comes in on the other side."""
    x = torch.cat([x_nhwc[:, shift:], x_nhwc[:, :shift]], dim=1)
    return torch.cat([x[:, :, shift:], x[:, :, :shift]], dim=2)


class WindowAttention(nn.Module):
    """Attention among the places of each window, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows_wlc: Tensor, mask: Tensor | None) -> Tensor:
        mixed = self.proj.in_features
        queries = (self.qkv.out_features - mixed) // 2
        parts = self.qkv(windows_wlc).split([queries, queries, mixed], dim=-1)
        query, key, value = (self._by_head(part) for part in parts)
        scores = (query * self.scale) @ key.transpose(-2, -1) + self._bias()
        if mask is not None:
            windows, length, _ = mask.shape
            spread = scores.reshape(-1, windows, self.heads, length, length) + mask[:, None]
            scores = spread.reshape(-1, self.heads, length, length)
        mixed_wlc = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(-1, windows_wlc.shape[1], mixed)
        return self.proj(mixed_wlc)  # type: ignore[no-any-return]

    def _by_head(self, x_wlc: Tensor) -> Tensor:
        _, length, width = x_wlc.shape
        return x_wlc.reshape(-1, length, self.heads, width // self.heads).transpose(1, 2)

    def _bias(self) -> Tensor:
        """[heads, places, places]."""
        places = self.relative_position_index.shape[0]
        rows = self.relative_position_bias_table[self.relative_position_index.reshape(-1)]
        return rows.reshape(places, places, self.heads).permute(2, 0, 1)


class ShiftedWindows(nn.Module):
    """Pads the grid to whole windows, shifts it, attends, and undoes both."""

    mask: Tensor | None

    def __init__(self, channels: int, heads: int, window: int, grid_hw: tuple[int, int], *, shifted: bool) -> None:
        super().__init__()
        height, width = grid_hw
        self.grid_hw, self.window = grid_hw, window
        self.padded_hw = -(-height // window) * window, -(-width // window) * window
        self.shift = window // 2 if shifted else 0
        self.w_msa = WindowAttention(channels, heads, window)
        mask = shift_mask(self.padded_hw, window, self.shift) if shifted else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x_nhwc: Tensor) -> Tensor:
        (height, width), (padded_height, padded_width) = self.grid_hw, self.padded_hw
        x = F.pad(x_nhwc, (0, 0, 0, padded_width - width, 0, padded_height - height))
        if self.shift:
            x = rolled(x, self.shift)
        x = from_windows(self.w_msa(to_windows(x, self.window), self.mask), self.padded_hw, self.window)
        if self.shift:
            x = rolled(x, -self.shift)
        return x[:, :height, :width]


class _FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(channels, hidden), nn.GELU()), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class SwinBlock(nn.Module):
    """Attention and feed-forward network, each after a norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int, config: SwinConfig, grid_hw: tuple[int, int], *, shifted: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = ShiftedWindows(channels, heads, config.window, grid_hw, shifted=shifted)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = _FeedForward(channels, channels * config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Four neighbours become one place of twice the channels. Channel c of neighbour n lies at 4 c + n, as in mmdet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x_nhwc: Tensor) -> Tensor:
        _, height, width, channels = x_nhwc.shape
        x = F.pad(x_nhwc, (0, 0, 0, width % 2, 0, height % 2))
        x = x.reshape(-1, (height + 1) // 2, 2, (width + 1) // 2, 2, channels).permute(0, 1, 3, 5, 2, 4)
        return self.reduction(self.norm(x.flatten(3)))  # type: ignore[no-any-return]


class SwinStage(nn.Module):
    """Blocks on one grid, every other one with shifted windows, and the step to the next grid."""

    def __init__(self, channels: int, stage: int, config: SwinConfig, grid_hw: tuple[int, int]) -> None:
        super().__init__()
        heads = config.heads[stage]
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, config, grid_hw, shifted=index % 2 == 1) for index in range(config.depths[stage])
        )
        self.downsample = PatchMerging(channels) if stage < len(config.depths) - 1 else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's feature, and what enters the next one."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, channels, patch, patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        (height, width), (patch, _) = images.shape[2:], self.projection.kernel_size
        images = F.pad(images, (0, -width % patch, 0, -height % patch))
        return self.norm(self.projection(images).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Swin(Backbone):
    """Swin transformer; its features are the last three stages', each after a norm of its own."""

    def __init__(self, config: SwinConfig, image_hw: tuple[int, int]) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(config.embed, config.patch)
        height, width = (-(-size // config.patch) for size in image_hw)
        stages = []
        channels = [config.embed << stage for stage in range(len(config.depths))]
        for stage, width_of_stage in enumerate(channels):
            stages.append(SwinStage(width_of_stage, stage, config, (height, width)))
            height, width = (height + 1) // 2, (width + 1) // 2
        self.stages = nn.ModuleList(stages)
        self.out_channels = channels[1:]
        for stage, width_of_stage in enumerate(channels[1:], start=1):
            self.add_module(f"norm{stage}", nn.LayerNorm(width_of_stage))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        features = []
        for index, stage in enumerate(self.stages):
            feature, x = stage(x)
            if index > 0:
                normed = cast(Tensor, self.get_submodule(f"norm{index}")(feature))
                features.append(normed.permute(0, 3, 1, 2))
        return features
