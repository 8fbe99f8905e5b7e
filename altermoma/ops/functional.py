"""Plugin-free primitives in torch. Each is gathers, products and sums only, so that it exports to any TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from altermoma.ops.sparse_tables import SEGMENTS

_FEW = 4
"""Rows that are added one after the other; more are gathered side by side, written and read once more, and summed."""


def with_zero_row(rows_nc: Tensor) -> Tensor:
    """Appends the row that table entries without a source point to."""
    return torch.cat([rows_nc, rows_nc.new_zeros(1, rows_nc.shape[1])])


def gather_rows(rows_nc: Tensor, table_mk: Tensor) -> Tensor:
    """float [N, C], int [M, K] -> float [M, K, C]; entry N reads zeros."""
    return _picked(with_zero_row(rows_nc), table_mk)


def _picked(padded_nc: Tensor, table_mk: Tensor) -> Tensor:
    # index_select instead of advanced indexing: its backward is one index_add, several times faster on CPU.
    picked = padded_nc.index_select(0, table_mk.reshape(-1))
    return picked.reshape(-1, table_mk.shape[1], padded_nc.shape[1])


def gather_conv(rows_nc: Tensor, tables: Sequence[Tensor], weight_okc: Tensor) -> Tensor:
    """Sparse convolution: float [N, C], int tables [M, K], weight [O, kx, ky, kz, C] -> float [sum of M, O].

    Tables of less offsets than the kernel's are those of `SEGMENTS`.
    """
    padded, weight_okc = with_zero_row(_as_products(rows_nc)), _as_products(weight_okc)
    parts = [
        _picked(padded, table).reshape(-1, part[0].numel()) @ part.reshape(part.shape[0], -1).transpose(0, 1)
        for table, part in zip(tables, _weights_of(tables, weight_okc), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _as_products(tensor: Tensor) -> Tensor:
    """In the type that products have here under mixed precision: rows are rounded before they are gathered."""
    kind = tensor.device.type
    if kind in {"cpu", "cuda"} and torch.is_autocast_enabled(kind):
        return tensor.to(torch.get_autocast_dtype(kind))
    return tensor


def _weights_of(tables: Sequence[Tensor], weight_okc: Tensor) -> list[Tensor]:
    """The part of the kernel that each table's offsets are for."""
    whole = weight_okc.shape[1] * weight_okc.shape[2] * weight_okc.shape[3]
    if all(table.shape[1] == whole for table in tables):
        return [weight_okc] * len(tables)
    return [weight_okc[:, :, :, first:end] for first, end in SEGMENTS.values()]


class _SubmanifoldConv(torch.autograd.Function):
    """gather_conv whose backward is again gathers.

    Submanifold tables mirror themselves: voxel i sees j at offset k exactly if j sees i at the mirrored offset. So the
    gradient of the rows is the same convolution with the kernel mirrored, and needs no scatter.
    """

    @staticmethod
    def forward(ctx: Any, rows_nc: Tensor, weight_okc: Tensor, *tables: Tensor) -> Tensor:
        ctx.save_for_backward(rows_nc, weight_okc, *tables)
        return gather_conv(rows_nc, tables, weight_okc)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, *tables = ctx.saved_tensors
        (grad_no,) = gradients
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = gather_conv(grad_no, tables, weight.flip(1, 2, 3).permute(4, 1, 2, 3, 0))
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(rows, grad_no, tables, weight)
        return grad_rows, grad_weight, *(None for _ in tables)


def _weight_gradient(rows_nc: Tensor, grad_no: Tensor, tables: Sequence[Tensor], weight_okc: Tensor) -> Tensor:
    padded, (out, x, y, z, channels) = with_zero_row(rows_nc), weight_okc.shape
    total = torch.zeros_like(weight_okc)
    grads = torch.split(grad_no, [table.shape[0] for table in tables])
    for table, grad, (first, end) in zip(tables, grads, SEGMENTS.values(), strict=True):
        neighbours = _picked(padded, table).reshape(len(table), table.shape[1] * channels)
        part = (grad.transpose(0, 1) @ neighbours).reshape(out, x, y, end - first, channels)
        total = total + F.pad(part, (0, 0, first, z - end))
    return total


def submanifold_conv(rows_nc: Tensor, tables: Sequence[Tensor], weight_okc: Tensor) -> Tensor:
    """gather_conv for a submanifold table in segments (output voxels = input voxels), several times faster to train."""
    rows_nc, weight_okc = _as_products(rows_nc), _as_products(weight_okc)
    if torch.is_grad_enabled() and (rows_nc.requires_grad or weight_okc.requires_grad):
        return cast(Tensor, _SubmanifoldConv.apply(rows_nc, weight_okc, *tables))  # type: ignore[no-untyped-call]
    return gather_conv(rows_nc, tables, weight_okc)


def rows_to_bev(rows_nc: Tensor, bev_table: Tensor, bev_shape: tuple[int, int], batch_size: int) -> Tensor:
    """Dense BEV from sparse rows: float [N, C], int [B * X * Y, Z] -> float [B, C * Z, X, Y], channel c * Z + z."""
    channels, depth = rows_nc.shape[1], bev_table.shape[1]
    cells = gather_rows(rows_nc, bev_table).reshape(batch_size, *bev_shape, depth * channels)
    layers = cells_to_map(cells).reshape(batch_size, depth, channels, bev_shape[0] * bev_shape[1])
    return layers.transpose(1, 2).reshape(batch_size, channels * depth, *bev_shape)


def cells_to_map(cells_bxyc: Tensor) -> Tensor:
    """float [B, X, Y, C] -> [B, C, X, Y], one axis at a time.

    ONNX Runtime swaps two axes of a row that fits its caches, then moves whole rows; the permutation at once takes 4 to
    10 times longer. The shapes differ in between so that no optimiser joins the two.
    """
    size, x, y, channels = cells_bxyc.shape
    rows = cells_bxyc.reshape(size * x, y, channels).transpose(1, 2)
    return rows.reshape(size, x, channels, y).transpose(1, 2)


def pool_bev(depth_weights: Tensor, pixel_features: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Lift-splat by tables (altermoma.ops.pooling_tables).

    Args:
        depth_weights: [V, h, w, D], softmax over the depth bins of each pixel.
        pixel_features: [V, h, w, C].
        tables: pool_depth [V * w, R, h], then pool_sum_1, ... [S, F].

    Returns:
        float [B * X * Y, C], the sum over the lifted pixels that fall into each cell.
    """
    pool_depth, *sums = tables
    views, height, width, channels = pixel_features.shape
    # As plain numbers, not as rows of one: there are millions, and a row is copied by a call of its own.
    numbers = torch.cat([depth_weights.reshape(-1), depth_weights.new_zeros(1)])
    weights = numbers.index_select(0, pool_depth.reshape(-1))
    columns = pixel_features.transpose(1, 2).reshape(views * width, height, channels)
    rows = (weights.reshape(views * width, -1, height) @ columns).reshape(-1, channels)
    for table in sums[:-1]:
        rows = torch.cat([rows, _summed_rows(rows, table)])
    return _summed_rows(rows, sums[-1])


def _summed_rows(rows_nc: Tensor, table_sf: Tensor) -> Tensor:
    """float [N, C], int [S, F] -> [S, C], the sum over each line's rows; entry N reads zeros."""
    if table_sf.shape[1] > _FEW:
        return gather_rows(rows_nc, table_sf).sum(dim=1)
    padded = with_zero_row(rows_nc)
    first, *others = (padded.index_select(0, column.reshape(-1)) for column in torch.split(table_sf, 1, dim=1))
    return sum(others, start=first)
