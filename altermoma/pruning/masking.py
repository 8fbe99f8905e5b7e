"""Alternative masking: which branch is off, and a model that comes back bit for bit as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.models.modes import batch_statistics, eval_mode
from altermoma.recipe import Norms, Partition

Masked = Literal["none", "camera", "lidar"]

MASKS: tuple[Masked, ...] = ("lidar", "camera")
"""Order of Algorithm 1: the LiDAR branch is masked first, then the camera branch."""

MASKS_OF: dict[Partition, tuple[Masked, ...]] = {
    "camera": ("lidar",),
    "lidar": ("camera",),
    "fusion": ("lidar", "camera"),
}
"""Masks under which the redundancy of a partition shows (paper eq. 11-13): the other modality's, or both."""

Batch = tuple[Any, Any]
"""(model input, truths) of a few frames, as the loss function takes them. A FrameBatch goes to the model's device."""


class LossFunction(Protocol):
    """Task loss L of the paper on one batch, with one branch masked."""

    def __call__(self, model: Any, batch: Any, truths: Any, masked: Any) -> Tensor: ...


Loss = Callable[[Batch, Masked], Tensor]
"""A loss function bound to a model."""


def on_device_of(model: nn.Module, inputs: Any) -> Any:
    """A FrameBatch on the model's device; any other input as it is."""
    return inputs.to(next(model.parameters()).device) if isinstance(inputs, FrameBatch) else inputs


def bind(model: nn.Module, loss_fn: LossFunction) -> Loss:
    """The loss as a function of batch and mask; a loss that is not finite is a PruningError."""

    def loss(batch: Batch, masked: Masked) -> Tensor:
        inputs, truths = batch
        value = loss_fn(model, on_device_of(model, inputs), truths, masked)
        if not bool(torch.isfinite(value)):
            raise PruningError(
                f"the task loss is {value.item()} with mask {masked!r}",
                expected="a finite loss",
                remedy="lower prune.reactivation_lr, and check that the checkpoint is trained and the labels are sound",
            )
        return value

    return loss


@contextmanager
def preserved(model: nn.Module, norms: Norms = "running") -> Iterator[dict[str, Tensor]]:
    """Yields a copy of all parameters; on exit parameters, buffers and train/eval modes are as before, bit for bit.

    Inside, the network is in eval mode, dropout is off. With "running" norms the batch norms use the trained running
    statistics: scores describe the network that is deployed, and do not depend on the batch composition. With "batch"
    they use the batch's own, as fine-tuning will: what the norm after a layer takes out again counts for nothing,
    and a model with a branch masked normalises what is left. On a CPU the same scores come out every time (see
    `repeatable`).
    """
    parameters = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    try:
        batch = batch_statistics(model) if norms == "batch" else nullcontext()
        with eval_mode(model), batch, repeatable(model):
            yield parameters
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(parameters[name])
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


@contextmanager
def repeatable(model: nn.Module) -> Iterator[None]:
    """On a CPU, gradients come out bit for bit the same each time: the backward of a gather is summed in a fixed order.

    Without this, several threads add to the same rows in the order they happen to run. On other devices it does
    nothing: not every operation has a deterministic form there.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the loss, zeros for parameters it does not reach; not finite is a PruningError."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    for gradient in found:
        # The sum is finite only if all are; a mask of what is finite would cost twice the gradient's memory.
        if gradient is not None and not bool(torch.isfinite(gradient.sum())):
            raise PruningError(
                "a gradient of the task loss is not finite",
                expected="finite gradients",
                remedy="lower prune.reactivation_lr",
            )
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def reactivate(model: nn.Module, loss: Loss, batch: Batch, masked: Masked, lr: float) -> dict[int, Tensor]:
    """A plain gradient step on every trainable parameter (paper eq. 16), in place; returns the gradients by `id`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = gradients(loss(batch, masked), trained)
    with torch.no_grad():
        for parameter, step in zip(trained, steps, strict=True):
            parameter.sub_(step, alpha=lr)
    return {id(parameter): step for parameter, step in zip(trained, steps, strict=True)}
