"""Train and eval mode of a module and all its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Sets a module to eval mode; afterwards every part of it is as it was (frozen norms stay frozen)."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms use the statistics of the batch and move their running ones; those with frozen weights do neither."""
    norms = [part for part in module.modules() if isinstance(part, NORMS)]
    before = [norm.training for norm in norms]
    for norm in norms:
        if norm.weight is None or norm.weight.requires_grad:
            norm.train()
    try:
        yield
    finally:
        for norm, training in zip(norms, before, strict=True):
            norm.train(training)
