"""Learning rate and momentum as pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from altermoma.recipe import TrainRecipe

_START = 0.1
_COSINE_END = 1e-2
_ONE_CYCLE_END = 1e-3
_MOMENTUM_HIGH, _MOMENTUM_LOW = 0.95, 0.85
_BETA1, _BETA2 = 0.9, 0.99


def _blend(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


def _progress(step: int, recipe: TrainRecipe) -> tuple[bool, float]:
    """Whether the step is in the warm-up, and the share of that phase that is done."""
    warmup = int(recipe.warmup_share * recipe.steps)
    if step < warmup:
        return True, (step + 1) / warmup
    return False, (step - warmup) / max(recipe.steps - warmup - 1, 1)


def learning_rate(step: int, recipe: TrainRecipe) -> float:
    """Rate of step 0, 1, ...: a rise to `recipe.lr` over the warm-up, then half a cosine down.

    `cosine` rises linearly and ends at 1 %; `one-cycle` rises along a cosine and ends at 0.1 %.
    """
    warming, share = _progress(step, recipe)
    if recipe.schedule == "one-cycle":
        return recipe.lr * (_blend(_START, 1.0, share) if warming else _blend(1.0, _ONE_CYCLE_END, share))
    return recipe.lr * (_START + (1 - _START) * share if warming else _blend(1.0, _COSINE_END, share))


def first_beta(step: int, recipe: TrainRecipe) -> float:
    """AdamW's first beta: constant with `cosine`; 0.95 to 0.85 and back against the rate with `one-cycle`."""
    if recipe.schedule != "one-cycle":
        return _BETA1
    warming, share = _progress(step, recipe)
    if warming:
        return _blend(_MOMENTUM_HIGH, _MOMENTUM_LOW, share)
    return _blend(_MOMENTUM_LOW, _MOMENTUM_HIGH, share)


def build_optimiser(parameters: Iterable[tuple[str, nn.Parameter]], recipe: TrainRecipe) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) are not decayed."""
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    matrices = [(name, p) for name, p in trainable if p.ndim > 1]
    vectors = [(name, p) for name, p in trainable if p.ndim <= 1]
    groups = [
        {"params": [p for _, p in matrices], "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in vectors], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=(_BETA1, _BETA2), eps=1e-8)


def apply_schedule(optimiser: torch.optim.Optimizer, step: int, recipe: TrainRecipe) -> float:
    """Sets the rate and momentum of `step` and returns the rate."""
    rate = learning_rate(step, recipe)
    for group in optimiser.param_groups:
        group["lr"] = rate
        group["betas"] = (first_beta(step, recipe), _BETA2)
    return rate
