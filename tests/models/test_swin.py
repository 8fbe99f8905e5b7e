"""Swin's windows against the definition of shifted-window attention, place by place, in float64."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altermoma.models.config import SwinConfig
from altermoma.models.swin import PatchMerging, ShiftedWindows, Swin

WINDOW, HEADS, CHANNELS = 3, 2, 8


def attention(grid_hw: tuple[int, int], shifted: bool) -> ShiftedWindows:
    torch.manual_seed(0)
    module = ShiftedWindows(CHANNELS, HEADS, WINDOW, grid_hw, shifted=shifted).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def by_definition(module: ShiftedWindows, x_hwc: Tensor, shift: int) -> Tensor:
    """Each place attends to those of its window that lie beside it in the picture, padding included."""
    height, width, channels = x_hwc.shape
    padded_height, padded_width = (-(-n // WINDOW) * WINDOW for n in (height, width))
    padded = torch.zeros(padded_height, padded_width, channels, dtype=torch.float64)
    padded[:height, :width] = x_hwc
    query, key, value = F.linear(padded, module.w_msa.qkv.weight, module.w_msa.qkv.bias).chunk(3, dim=-1)
    table, depth = module.w_msa.relative_position_bias_table, channels // HEADS

    def place(y: int, x: int) -> tuple[int, int, bool, bool]:
        moved_y, moved_x = (y - shift) % padded_height, (x - shift) % padded_width
        return moved_y, moved_x, y < shift, x < shift

    cells = [(y, x) for y in range(padded_height) for x in range(padded_width)]
    mixed = torch.zeros_like(padded)
    for y, x in cells:
        moved_y, moved_x, *side = place(y, x)
        seen = []
        for other in cells:
            other_y, other_x, *other_side = place(*other)
            if (other_y // WINDOW, other_x // WINDOW) == (moved_y // WINDOW, moved_x // WINDOW) and side == other_side:
                row = (moved_y - other_y + WINDOW - 1) * (2 * WINDOW - 1) + moved_x - other_x + WINDOW - 1
                seen.append((other, row))
        for head in range(HEADS):
            part = slice(head * depth, (head + 1) * depth)
            scores = torch.stack([query[y, x, part] @ key[c][part] / depth**0.5 + table[row, head] for c, row in seen])
            values = torch.stack([value[c][part] for c, _ in seen])
            mixed[y, x, part] = scores.softmax(0) @ values
    return F.linear(mixed, module.w_msa.proj.weight, module.w_msa.proj.bias)[:height, :width]


@torch.no_grad()
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid_hw", [(6, 6), (5, 7)])
def test_windows_equal_their_definition(grid_hw: tuple[int, int], shifted: bool) -> None:
    module = attention(grid_hw, shifted)
    x = torch.randn(2, *grid_hw, CHANNELS, dtype=torch.float64)
    expected = torch.stack([by_definition(module, one, WINDOW // 2 if shifted else 0) for one in x])
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_merging_takes_four_neighbours_as_unfold_does() -> None:
    torch.manual_seed(1)
    module = PatchMerging(3)
    x = torch.randn(2, 5, 4, 3)
    unfolded = F.unfold(F.pad(x.permute(0, 3, 1, 2), (0, 0, 0, 1)), 2, stride=2).transpose(1, 2)
    expected = module.reduction(module.norm(unfolded)).reshape(2, 3, 2, 6)
    torch.testing.assert_close(module(x), expected)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
def test_features_have_their_strides_and_export() -> None:
    import onnxruntime

    config = SwinConfig(embed=8, depths=(1, 2, 2, 1), heads=(1, 2, 2, 4), window=WINDOW)
    torch.manual_seed(2)
    net = Swin(config, (50, 70)).eval()
    images = torch.randn(2, 3, 50, 70)
    features = net(images)
    assert [f.shape[1] for f in features] == net.out_channels == [16, 32, 64]
    assert [tuple(f.shape[2:]) for f in features] == [(7, 9), (4, 5), (2, 3)]
    buffer = io.BytesIO()
    torch.onnx.export(net, (images,), buffer, input_names=["images"], opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {"images": images.numpy()}), features, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
