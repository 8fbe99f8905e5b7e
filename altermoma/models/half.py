"""Mixed precision: what a network may compute in sixteen bits, and what it may not."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def is_mixed(tensor: Tensor) -> bool:
    """Whether products of such tensors are computed in sixteen bits here."""
    kind = tensor.device.type
    return kind in {"cpu", "cuda"} and torch.is_autocast_enabled(kind)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Inside, products on the tensor's device are computed as their operands are."""
    return torch.autocast(tensor.device.type, enabled=False) if is_mixed(tensor) else contextlib.nullcontext()


def widened(tensor: Tensor) -> Tensor:
    """Sixteen bits become float32; anything else stays as it is."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor
