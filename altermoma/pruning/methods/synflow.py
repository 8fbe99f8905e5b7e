"""SynFlow (Tanaka et al., NeurIPS 2020): synaptic flow through the network's absolute weights, without data.

R is the sum of all outputs for an input of ones, the score theta * dR/dtheta. Pruned in many small rounds, so that no
layer is emptied: what a layer's scores sum to is conserved from layer to layer, so few weights have high scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from altermoma.errors import PruningError
from altermoma.models.fusion import FusionModel
from altermoma.models.modes import eval_mode
from altermoma.models.rebuild import load_by_shape
from altermoma.progress import track
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.indicators import Terms
from altermoma.pruning.methods.ones import all_ones, small_geometry
from altermoma.pruning.methods.scoring import Cut, Scoring, share_of_round
from altermoma.pruning.unstructured import apply_masks


class OnlyFlow(TorchFunctionMode):
    """Inside, the network is what SynFlow asks for: nothing but products with positive numbers.

    Batch norms scale as they do when deployed and add nothing, layer norms and GELU pass on what they get, and softmax
    divides its input by a constant, the sum.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.batch_norm:
            return _scaled(*args, **given)
        if func in _PASSED_ON:
            return args[0]
        if func in _SHARES:
            positive = F.relu(args[0])
            total = positive.detach().sum(dim=given.get("dim", args[1] if len(args) > 1 else -1), keepdim=True)
            return positive / total.clamp_min(torch.finfo(total.dtype).tiny)
        return func(*args, **given)


_PASSED_ON = frozenset({F.layer_norm, F.gelu})
_SHARES = frozenset({F.softmax, torch.softmax, torch.Tensor.softmax})


def _scaled(x: Tensor, _mean: Tensor, variance: Tensor, *, weight: Tensor, eps: float, **_unused: Any) -> Tensor:
    """Batch norm without its mean and shift."""
    scale = weight.detach() / (variance + eps).sqrt()
    return x * scale.reshape(-1, *[1] * (x.ndim - 2))


def synflow_scores(work: Scoring) -> ChannelVectors:
    """Scores after the last round, up to a power of two; what earlier rounds removed is zero there, so it goes first.

    The network is copied, in double precision and on a small range: a full voxel grid, and pictures of ones.

    Raises:
        PruningError: a model that is not a camera-LiDAR detector.
    """
    if not isinstance(work.model, FusionModel):
        raise PruningError(f"SynFlow on a {type(work.model).__name__}", expected="a FusionModel, to know its input")
    config = dataclasses.replace(work.model.config, geometry=small_geometry(work.model.config.geometry))
    probe = FusionModel(config)
    load_by_shape(probe, {name: tensor.detach().cpu() for name, tensor in work.model.state_dict().items()})
    rounds, amount = work.recipe.synflow_rounds, work.recipe.amount
    return flow_scores(probe.double(), all_ones(config.geometry), work.terms, work.cut, rounds, amount)


def flow_scores(model: nn.Module, inputs: Any, terms: Terms, cut: Cut, rounds: int, amount: float) -> ChannelVectors:
    """Rounds of flow and cut on a model that may be changed."""
    make_positive(model)
    scores: ChannelVectors = {}
    for turn in track(range(1, rounds + 1), "Rounds of SynFlow"):
        parameters = dict(model.named_parameters())
        theta = {name: parameters[name].detach() for name in terms.names}
        scores = terms.magnitude(theta, _in_range(flow(model, inputs, terms.names)))
        if turn < rounds:
            apply_masks(model, cut(scores, share_of_round(amount, turn, rounds)))
    return scores


def make_positive(model: nn.Module) -> None:
    """Weights become their absolute values, everything that is added (biases, position tables) zero; in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight"):
                parameter.abs_()
            else:
                parameter.zero_()


def flow(model: nn.Module, inputs: Any, names: Sequence[str]) -> list[Tensor]:
    """dR/dtheta of the named parameters; zeros where no flow comes."""
    parameters = dict(model.named_parameters())
    wanted = [parameters[name].requires_grad_() for name in names]
    with eval_mode(model), OnlyFlow():
        found = torch.autograd.grad(_sum_of(model(inputs)), wanted, allow_unused=True)
    return [torch.zeros_like(p) if slope is None else slope for p, slope in zip(wanted, found, strict=True)]


def _in_range(slopes: Sequence[Tensor]) -> list[Tensor]:
    """All divided by the power of two just above the largest, which moves no rank.

    A transformer that nothing normalises has flows of 1e43; scores of single weights are kept in single precision.
    """
    largest = max(float(slope.abs().max()) for slope in slopes)
    exponent = math.frexp(largest)[1]
    return [torch.ldexp(slope, torch.tensor(-exponent)) for slope in slopes]


def _sum_of(outputs: Any) -> Tensor:
    """R: the sum over all outputs that weights reach."""
    every = [outputs] if isinstance(outputs, Tensor) else list(vars(outputs).values())
    total: Tensor = sum((x.sum() for x in every if x.requires_grad), torch.zeros(()))
    return total
