"""Batch norm over the frames of all processes.

torch's SyncBatchNorm does the same on GPUs alone; this one needs sums over processes only, so that what is trained is
the same on every device, and can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from altermoma.models.half import widened


class SyncedNorms(TorchFunctionMode):
    """Inside, every batch norm in training takes its statistics from all processes, and tracks those."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm or not kwargs.get("training"):
            return func(*args, **kwargs)
        values, running_mean, running_var = args
        normal, *found = _SyncedNorm.apply(values, kwargs["weight"], kwargs["bias"], kwargs["eps"])  # type: ignore[no-untyped-call]
        if running_mean is not None:
            _track(running_mean, running_var, found, kwargs["momentum"])
        return normal


@torch.no_grad()
def _track(running_mean: Tensor, running_var: Tensor, found: Sequence[Tensor], momentum: float) -> None:
    mean, variance, count = found
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)


class _SyncedNorm(torch.autograd.Function):
    """[N, C, ...] -> normalised, and mean [C], variance [C] and number of values per channel over all processes."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide, others = widened(values), _others(values)
        variance, mean = torch.var_mean(wide, dim=others, correction=0)
        count = values.numel() / values.shape[1]
        mine = torch.cat([mean, variance, mean.new_full((1,), count)])
        if not count:
            mine = torch.zeros_like(mine)
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        means, variances, counts = torch.split(torch.stack(everyone), [len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(dim=0) / total
        variance = ((variances + (means - mean).square()) * counts).sum(dim=0) / total
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(values, weight, mean, scale, total)
        normal = (wide - _along(mean, wide)) * _along(scale * weight, wide) + _along(bias, wide)
        ctx.mark_non_differentiable(mean, variance, total)
        return normal.to(values.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, scale, total = ctx.saved_tensors
        gradient, others = widened(gradients[0]), _others(values)
        standard = (widened(values) - _along(mean, values)) * _along(scale, values)
        sums = torch.stack([gradient.sum(dim=others), (gradient * standard).sum(dim=others)])
        means = sums.clone()
        dist.all_reduce(means)
        means = means / total
        change = gradient - _along(means[0], gradient) - standard * _along(means[1], gradient)
        change = change * _along(scale * weight, gradient)
        return change.to(values.dtype), sums[1].to(weight.dtype), sums[0].to(weight.dtype), None


def _others(values: Tensor) -> list[int]:
    return [dim for dim in range(values.ndim) if dim != 1]


def _along(channels: Tensor, values: Tensor) -> Tensor:
    """[C] so that it spreads over [N, C, ...]."""
    return channels.reshape(1, -1, *(1,) * (values.ndim - 2))
