"""Short fine-tuning that feels the rounding: int8 data and weights in each layer, gradients pass straight through.

(Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference, 2018; the
gradient of rounding is 1 inside the range and 0 outside.) A scale per output channel suits batch norms that are folded
later: folding multiplies a channel, and its scale with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altermoma.calib.int8 import StagePlan
from altermoma.calib.placement import place
from altermoma.calib.scales import LARGEST, Range
from altermoma.errors import ExportError
from altermoma.models.sparse_encoder import GatherConv
from altermoma.ops.functional import gather_conv, submanifold_conv


def rounded_data(values: Tensor, limit: float) -> Tensor:
    """Values as int8 numbers of the range [-limit, limit], with the straight-through gradient."""
    inside = values.clamp(-limit, limit)
    scale = limit / LARGEST
    return inside + (torch.round(inside / scale) * scale - inside).detach()


def rounded_weight(weight: Tensor) -> Tensor:
    """Weights as int8 numbers, symmetric per output channel (axis 0); zeros stay zeros."""
    flat = weight.detach().flatten(1).abs().amax(dim=1)
    scale = torch.where(flat > 0, flat / LARGEST, torch.ones_like(flat)).reshape(-1, *[1] * (weight.ndim - 1))
    return weight + (torch.round(weight / scale) * scale - weight).detach()


@contextmanager
def fake_quantised(model: nn.Module, limits: Mapping[str, float]) -> Iterator[None]:
    """Lets the modules of these names round their data to [-limit, limit] and their weights, until the end.

    Parameters stay where they are: what is trained and saved are the float weights.

    Raises:
        ExportError: a module that is no convolution and no linear layer.
    """
    changed: list[tuple[nn.Module, str]] = []
    try:
        for name, limit in limits.items():
            module = model.get_submodule(name)
            attribute, compute = _rounding(name, module, limit)
            setattr(module, attribute, compute)
            changed.append((module, attribute))
        yield
    finally:
        for module, attribute in changed:
            delattr(module, attribute)


@contextmanager
def frozen_norms(model: nn.Module) -> Iterator[None]:
    """Keeps batch norms at their running statistics whatever mode the model is set to: as they will be folded."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    modes = [module.training for module in norms]
    for module in norms:
        module.eval()
        module.train = lambda mode=True, same=module: same  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, mode in zip(norms, modes, strict=True):
            del module.train
            module.train(mode)


def _rounding(name: str, module: nn.Module, limit: float) -> tuple[str, Callable[..., Tensor]]:
    """The method of a module that is replaced, and what replaces it."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        convolve: Any = type(module)._conv_forward
        return "_conv_forward", lambda x, w, b: convolve(module, rounded_data(x, limit), rounded_weight(w), b)
    if isinstance(module, nn.Linear):
        return "forward", lambda x: F.linear(rounded_data(x, limit), rounded_weight(module.weight), module.bias)
    if isinstance(module, GatherConv):
        gather = submanifold_conv if module.submanifold else gather_conv
        return "forward", lambda x, tables: gather(rounded_data(x, limit), tables, rounded_weight(module.weight))
    raise ExportError(
        f"module {name} is a {type(module).__name__}", expected="a convolution, a linear layer or a gather convolution"
    )


def data_limits(
    model: nn.Module,
    plans: Mapping[str, StagePlan],
    groups: frozenset[str],
    ranges: Mapping[str, Mapping[str, Range]],
) -> dict[str, float]:
    """Largest magnitude that the data of each int8 module keep, by module name; modules are found by node names."""
    modules = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    found: dict[str, float] = {}
    for stage, plan in plans.items():
        chosen = plan.chosen(groups)
        placement = place(plan.graph, chosen, results=False)
        for product in (item for item in chosen if item.weight):
            name = _module_of(product.node, modules)
            sources = [ranges[stage][tensor] for tensor in placement.sources[placement.points[product.data]]]
            if name is not None:
                found[name] = max(max(-item.low, item.high) for item in sources)
    return found


def _module_of(node: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The one module whose name ends as the node's path does; None where a layer is written out in several nodes."""
    path = node.rsplit("/", 1)[0].replace("/", ".")
    matches = [name for name in modules if name == path or name.endswith(f".{path}")]
    return matches[0] if len(matches) == 1 else None
