"""TransFusion's decoder layer with mmdet3d's parameter names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedAttention(nn.Module):
    """Multi-head attention written out, so that it counts FLOPs everywhere and exports as plain products.

    Parameters are named as in torch.nn.MultiheadAttention.
    """

    def __init__(self, embed: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed, embed))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed))
        self.out_proj = nn.Linear(embed, embed)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query_bpc: Tensor, key_bkc: Tensor, value_bkc: Tensor) -> Tensor:
        parts = zip(
            (query_bpc, key_bkc, value_bkc),
            self.in_proj_weight.chunk(3),
            self.in_proj_bias.chunk(3),
            strict=True,
        )
        query, key, value = (self._split(F.linear(x, weight, bias)) for x, weight, bias in parts)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2)
        return self.out_proj(mixed.reshape(query_bpc.shape))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        batch, length, embed = x.shape
        return x.reshape(batch, length, self.heads, embed // self.heads).transpose(1, 2)


class _Attention(nn.Module):
    """The `attn` level of mmcv's names, and its residual."""

    def __init__(self, embed: int, heads: int) -> None:
        super().__init__()
        self.attn = PackedAttention(embed, heads)

    def forward(self, query: Tensor, query_pos: Tensor, key: Tensor, key_pos: Tensor) -> Tensor:
        # TransFusion also adds the position to the value, unlike DETR.
        positioned = key + key_pos
        return query + self.attn(query + query_pos, positioned, positioned)  # type: ignore[no-any-return]


class PositionEmbedding(nn.Module):
    """Learned embedding of BEV positions: [B, L, 2] -> [B, L, C]."""

    def __init__(self, embed: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, embed, 1), nn.BatchNorm1d(embed), nn.ReLU(), nn.Conv1d(embed, embed, 1)
        )

    def forward(self, positions_bl2: Tensor) -> Tensor:
        return self.position_embedding_head(positions_bl2.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    def __init__(self, embed: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(embed, hidden), nn.ReLU()), nn.Linear(hidden, embed))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the BEV, feed-forward; norms after each."""

    def __init__(self, embed: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = _Attention(embed, heads)
        self.cross_attn = _Attention(embed, heads)
        self.ffn = _FeedForward(embed, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(embed) for _ in range(3))
        self.self_posembed = PositionEmbedding(embed)
        self.cross_posembed = PositionEmbedding(embed)

    def forward(self, query: Tensor, key: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """query [B, P, C], key [B, X*Y, C], positions [B, P, 2] and [1, X*Y, 2] in cells -> [B, P, C]."""
        query_pos = self.self_posembed(query_positions)
        key_pos = self.cross_posembed(key_positions)
        query = self.norms[0](self.self_attn(query, query_pos, query, query_pos))
        query = self.norms[1](self.cross_attn(query, query_pos, key, key_pos))
        return self.norms[2](self.ffn(query))  # type: ignore[no-any-return]
