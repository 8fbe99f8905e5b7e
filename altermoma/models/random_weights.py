"""Presets with random weights that behave like trained ones: for measuring what does not depend on what was learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from altermoma.models.batch import FrameBatch
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build

Norm = nn.BatchNorm1d | nn.BatchNorm2d

RESIDUAL = 0.1
"""Scale of the last norm of each residual block. At 1, a hundred random layers blow a relative error in the pictures up
670 times, so that half precision cannot be right; at 0.1, 6 times, nearer to networks that learned to be smooth."""


def random_model(name: str, make_batch: Callable[[FusionModel], FrameBatch], seed: int = 0) -> FusionModel:
    """A preset whose activations neither vanish nor explode on a frame; in eval mode, the same for a seed.

    Batch norms get random scales and shifts (small ones where they end a residual block) and the statistics of the
    frame. The head's last layers are scaled to outputs of a few units: random ones saturate, and proposals tie.

    Args:
        name: of the preset.
        make_batch: the frame, made for the model's geometry.
        seed: of all random numbers; torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(name)
        for module in model.modules():
            if isinstance(module, Norm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
        _damp_blocks(model)
        batch = make_batch(model)
        with torch.no_grad():
            with _statistics(model):
                model(batch)
            _spread(model, batch)
    return model.eval()


@torch.no_grad()
def _damp_blocks(model: nn.Module) -> None:
    for block in model.modules():
        last = getattr(block, "bn3", getattr(block, "bn2", None))
        if last is not None:
            last.weight.mul_(RESIDUAL)
            last.bias.mul_(RESIDUAL)


@contextmanager
def _statistics(model: nn.Module) -> Iterator[None]:
    """Inside, a forward pass leaves its own statistics in the batch norms."""
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, Norm)}
    for module in momenta:
        module.momentum = 1.0
    model.train()
    try:
        yield
    finally:
        model.eval()
        for module, momentum in momenta.items():
            module.momentum = momentum


def _spread(model: FusionModel, batch: FrameBatch) -> None:
    """Scales the weights of the head's last layers: logits of the heatmap up to 4, others with a deviation of 1."""
    head = model.bbox_head
    bev = model.fuse(model.camera_branch(batch), model.lidar_branch(batch))
    _scaled_outputs(head, bev, [head.heatmap_head[1]], lambda logits: logits.abs().max() / 4)
    branches = cast(nn.ModuleDict, head.prediction_heads[0])
    _scaled_outputs(head, bev, [cast(nn.Sequential, branch)[1] for branch in branches.values()], Tensor.std)


def _scaled_outputs(
    head: nn.Module, bev: Tensor, layers: Sequence[nn.Module], size_of: Callable[[Tensor], Tensor]
) -> None:
    sizes: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        sizes[layer] = size_of(output)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        head(bev)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, size in sizes.items():
        cast(Tensor, layer.weight).div_(size)
