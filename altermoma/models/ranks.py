"""Several processes that train one model: who they are, and what they add up.

Every process computes its part of a batch. What a loss or a norm takes from the whole batch is added up here, so that
the parts together give what one process gives for all of it, but for rounding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from altermoma.errors import AltermomaError, RecipeError

BUCKET_BYTES = 32 << 20
"""Gradients that go over the wire at once."""


class _Summed(torch.autograd.Function):
    """Sum over processes; so is its gradient, for the loss is the sum of what each of them computes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together; alone it is number 0 of 1."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def here() -> Ranks:
        """As `process_group` has set it up."""
        if dist.is_available() and dist.is_initialized():
            return Ranks(rank=dist.get_rank(), size=dist.get_world_size())
        return Ranks()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes, through which gradients flow."""
        return value if self.size == 1 else cast(Tensor, _Summed.apply(value))  # type: ignore[no-untyped-call]

    def number(self, value: float, device: torch.device) -> float:
        """Sum of a number over all processes."""
        if self.size == 1:
            return value
        return float(self.total(torch.tensor(value, dtype=torch.float64, device=device)))

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, by number; small plain objects only."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agree(self, what: Mapping[str, object], remedy: str) -> None:
        """Ends all processes where they do not have the same.

        Raises:
            AltermomaError: naming what differs, and who has what.
        """
        everyone = self.gathered(dict(what))
        for name in what:
            found = [one[name] for one in everyone]
            if any(value != found[0] for value in found):
                listed = ", ".join(f"{value} (process {number})" for number, value in enumerate(found))
                raise AltermomaError(
                    f"the processes do not agree on {name}: {listed}",
                    expected="the same in every process",
                    remedy=remedy,
                )

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds up the gradients of all processes, in place; a parameter that none of them reached keeps none.

        Not DistributedDataParallel: it lays out its buckets anew after its first step, so that with more than two
        processes a resumed run would add in another order than one that was not killed.
        """
        if self.size == 1 or not parameters:
            return
        reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32).to(parameters[0].device)
        dist.all_reduce(reached)
        live = [parameter for parameter, count in zip(parameters, reached.tolist(), strict=True) if count]
        for parameter in live:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, parameter.grad) for parameter in live]
        under_way = []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            under_way.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in under_way:
            work.wait()
            for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.reshape(gradient.shape))


ALONE = Ranks()


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, up to BUCKET_BYTES together."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        size = sum(g.numel() * g.element_size() for g in bucket)
        if bucket and (size >= BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def started_together() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that torchrun started: NCCL between GPUs, gloo between CPUs. Alone, nothing is done.

    Raises:
        RecipeError: they do not find one another.
    """
    if started_together() == 1:
        yield ALONE
        return
    try:
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        raise RecipeError(
            f"{started_together()} processes were started, and this one cannot reach the others: {error}",
            expected="processes that torchrun started",
            remedy="start them with torchrun; on several machines give each the same --rdzv-endpoint",
        ) from error
    try:
        yield Ranks.here()
    finally:
        dist.destroy_process_group()
