"""Batch norm over rows of voxels: rows that are none take no part."""

from __future__ import annotations

import torch
from torch import nn

from altermoma.models.sparse_encoder import RowNorm


def pair() -> tuple[RowNorm, nn.BatchNorm1d]:
    torch.manual_seed(0)
    ours, theirs = RowNorm(4, eps=1e-3), nn.BatchNorm1d(4, eps=1e-3)
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.25)
    return ours, theirs


def test_rows_of_no_voxel_change_nothing() -> None:
    """Two segments, of three voxels and of none; 5 stands for "none" of five sources."""
    ours, theirs = pair()
    rows = torch.randn(4, 4, requires_grad=True)
    tables = [torch.tensor([[0, 5], [5, 3], [4, 1]]), torch.tensor([[5, 5, 5]])]
    found, expected = ours(rows, torch.zeros(5, 2), tables), theirs(rows[:3])
    torch.testing.assert_close(found[:3], expected)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    (gradient,) = torch.autograd.grad(found.square().sum(), rows)
    (wanted,) = torch.autograd.grad(expected.square().sum(), rows)
    torch.testing.assert_close(gradient, wanted)
    assert not found[3].any()


def test_without_two_voxels_the_statistics_stay() -> None:
    ours, theirs = pair()
    rows = torch.randn(2, 4)
    found = ours(rows, torch.zeros(1, 2), [torch.tensor([[0]]), torch.tensor([[1]])])
    torch.testing.assert_close(found, theirs.eval()(rows))
    assert ours.num_batches_tracked == 0
    assert not ours(rows[:0], torch.zeros(0, 2), [torch.zeros((0, 1), dtype=torch.int64)]).numel()
