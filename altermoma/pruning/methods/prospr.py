"""ProsPr (Alizadeh et al., ICLR 2022): the loss after K steps of training, as a function of a mask on the start.

With w_0 = theta * m, and w_{k+1} = w_k - lr * dL_k/dw_k, the score is |dL_K/dm| at m = 1, through the product of all
step Jacobians. As dL_K/dm = theta * dL_K/dw_0, it is a first-order term like those of the other methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from altermoma.errors import PruningError
from altermoma.progress import track
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.masking import Batch, LossFunction, on_device_of, preserved
from altermoma.pruning.methods.scoring import Scoring


class _Task(nn.Module):
    """The loss as a module, so that it can be called with other weights."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, inputs: Any, truths: Any) -> Tensor:
        return self.loss_fn(self.model, on_device_of(self.model, inputs), truths, "none")


def prospr_scores(work: Scoring) -> ChannelVectors:
    """Meta-gradients of `prospr_draws` draws of K + 1 batches each, summed before the absolute value.

    The network is in train mode, as in the authors' code: batch norms use the statistics of the batch. Memory grows
    with K: the graphs of all steps are kept.

    Raises:
        PruningError: a meta-gradient that is not finite.
    """
    recipe, task = work.recipe, _Task(work.model, work.loss_fn)
    steps = recipe.prospr_steps + 1
    total: dict[str, Tensor] = {}
    with preserved(work.model) as theta:
        for draw in track(range(recipe.prospr_draws), "Scores, ProsPr"):
            batches = work.batches[draw * steps : (draw + 1) * steps]
            found = meta_gradient(task, batches, recipe.prospr_lr, work.terms.names)
            total = {name: total[name] + slope for name, slope in found.items()} if total else dict(found)
        return work.terms.magnitude(theta, [total[name] for name in work.terms.names])


def meta_gradient(task: _Task, batches: Sequence[Batch], lr: float, names: Sequence[str]) -> Mapping[str, Tensor]:
    """dL(w_K; last batch) / dw_0 of the named parameters, after one plain gradient step on each batch before."""
    start = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in task.named_parameters()}
    buffers = {name: tensor.detach().clone() for name, tensor in task.named_buffers()}
    trained = [name for name, p in start.items() if p.requires_grad]
    task.train()

    def loss(weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        value: Tensor = functional_call(task, {**weights, **buffers}, batch)
        return value

    weights = dict(start)
    for batch in batches[:-1]:
        slopes = torch.autograd.grad(
            loss(weights, batch), [weights[name] for name in trained], create_graph=True, allow_unused=True
        )
        weights |= {
            name: weights[name] - lr * slope for name, slope in zip(trained, slopes, strict=True) if slope is not None
        }
    wanted = [start[f"model.{name}"] for name in names]
    found = torch.autograd.grad(loss(weights, batches[-1]), wanted, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]
    for name, gradient in zip(names, gradients, strict=True):
        if not bool(torch.isfinite(gradient).all()):
            raise PruningError(
                f"the meta-gradient of {name} is not finite",
                expected="steps small enough to differentiate through",
                remedy=f"lower prune.prospr_lr ({lr:g}) or prune.prospr_steps ({len(batches) - 1})",
            )
    return dict(zip(names, gradients, strict=True))
