"""2:4 sparsity: of four consecutive input channels at most two have a weight, for every output and kernel position.

TensorRT runs such convolutions and matrix products on sparse tensor cores where that is faster. Which weights take the
pattern follows from the layers alone, by `two_four_rules`: first and last layers and position embeddings compute in
fp32 and stay dense.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from altermoma.errors import CheckpointError, PruningError
from altermoma.models.attention import PackedAttention
from altermoma.models.sparse_encoder import GatherConv
from altermoma.ops.sparse_tables import SEGMENTS
from altermoma.pruning.two_four_rules import (
    FOUR,
    FULL_PRECISION,
    GROUPED,
    LOOKED_UP,
    TRANSPOSED,
    WIDTH_RULES,
    WidthRule,
    too_narrow,
)

PATTERN = "2:4"
_FULL_PRECISION = re.compile(
    r"view_transform\.dtransform\.0$"
    r"|pts_middle_encoder\.conv_input\.0$"
    r"|pts_voxel_encoder\.pfn_layers\.0\.linear$"
    r"|_posembed\."
    r"|bbox_head\.heatmap_head\.1$"
    r"|bbox_head\.prediction_heads\.\d+\.\w+\.1$"
)
"""Layers that read metres or give coordinates and scores, and position embeddings: islands of fp32 in fp16 graphs."""

Masks = dict[str, Tensor]
"""Parameter name -> bool of its shape, True where the weight stays."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A parameter that is multiplied.

    Attributes:
        name: of the parameter.
        dim: its dimension of input channels, along which fours lie.
        obstacle: why it stays dense; empty where it takes the pattern.
    """

    name: str
    dim: int
    obstacle: str


def weights_of(model: nn.Module, rule: WidthRule) -> tuple[Weight, ...]:
    """Every weight of convolutions, linear layers and attention, in order of definition."""
    return tuple(weight for name, module in model.named_modules() for weight in _weights(name, module, rule))


def _weights(name: str, module: nn.Module, rule: WidthRule) -> Iterator[Weight]:
    if isinstance(module, PackedAttention):
        outputs, inputs = module.in_proj_weight.shape
        narrow = too_narrow(rule, inputs=inputs, outputs=outputs // 3)
        yield Weight(name=f"{name}.in_proj_weight", dim=1, obstacle=narrow)
    elif isinstance(module, GatherConv):
        narrow = too_narrow(rule, inputs=_gathered(module), outputs=module.weight.shape[0])
        yield Weight(name=f"{name}.weight", dim=4, obstacle=_stays_full(name) or narrow)
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        yield Weight(name=f"{name}.weight", dim=0, obstacle=TRANSPOSED)
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        outputs, inputs, *kernel = module.weight.shape
        narrow = too_narrow(rule, inputs=inputs, outputs=outputs, positions=math.prod(kernel))
        special = GROUPED if getattr(module, "groups", 1) > 1 else _stays_full(name)
        special = LOOKED_UP if name.endswith("class_encoding") else special
        yield Weight(name=f"{name}.weight", dim=1, obstacle=special or narrow)


def _stays_full(name: str) -> str:
    return FULL_PRECISION if _FULL_PRECISION.search(name) else ""


def _gathered(module: GatherConv) -> int:
    """Rows of the smallest matrix that the convolution becomes: a segment's, where its rows come in segments."""
    _, x, y, z, channels = module.weight.shape
    least = min(end - first for first, end in SEGMENTS.values()) if module.submanifold else z
    return x * y * least * channels


def best_two(importance: Tensor, dim: int) -> Tensor:
    """Bool, True for the two highest of each four along `dim`; of equals the first.

    Raises:
        PruningError: a dimension that does not part into fours.
    """
    size = importance.shape[dim]
    if size % FOUR:
        raise PruningError(f"{size} input channels", expected="a multiple of 4 for 2:4 sparsity")
    ranks = _fours(importance, dim).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (ranks < 2).flatten(-2).movedim(-1, dim)


def holds(weight: Tensor, dim: int) -> bool:
    """Whether no four along `dim` has more than two weights."""
    if weight.shape[dim] % FOUR:
        return False
    return bool((_fours(weight != 0, dim).sum(dim=-1) <= 2).all())


def _fours(tensor: Tensor, dim: int) -> Tensor:
    """`dim` last and parted into fours."""
    rows = tensor.movedim(dim, -1)
    return rows.reshape(*rows.shape[:-1], -1, FOUR)


def two_four_masks(model: nn.Module, rule: WidthRule, importance: Mapping[str, Tensor] | None = None) -> Masks:
    """Masks of all weights that take the pattern: the two largest of each four stay.

    Args:
        model: dense or pruned.
        rule: how wide a product must be.
        importance: what to go by instead of magnitude, by parameter name and of its shape.

    Raises:
        PruningError: no weight of the model takes the pattern.
    """
    chosen = [weight for weight in weights_of(model, rule) if not weight.obstacle]
    if not chosen:
        raise PruningError(
            f"no weight takes 2:4 under the rule {rule!r}",
            expected="a layer that is wide enough",
            remedy="choose another prune.two_four_rule: " + ", ".join(WIDTH_RULES),
        )
    parameters = dict(model.named_parameters())
    by_size = {weight.name: parameters[weight.name].detach().abs() for weight in chosen}
    by_size |= {name: found.to(by_size[name].device) for name, found in (importance or {}).items() if name in by_size}
    return {weight.name: best_two(by_size[weight.name], weight.dim) for weight in chosen}


def kept_magnitude(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Share of the masked weights' magnitude that stays; of the model as it was before."""
    kept = whole = 0.0
    for name, mask in masks.items():
        size = model.get_parameter(name).detach().abs().double()
        kept, whole = kept + float((size * mask).sum()), whole + float(size.sum())
    return kept / whole if whole else 1.0


def claim(model: nn.Module, masks: Mapping[str, Tensor], rule: WidthRule) -> dict[str, Any]:
    """What a checkpoint says of its sparsity, under "sparsity" of its metadata: the weights that hold the pattern."""
    dims = {weight.name: weight.dim for weight in weights_of(model, rule)}
    return {"pattern": PATTERN, "rule": rule, "weights": {name: dims[name] for name in masks}}


def claimed_masks(state: Mapping[str, Tensor], record: Any, source: str) -> Masks:
    """The masks of a checkpoint that says it is 2:4; checked against its weights.

    Args:
        state: its weights.
        record: what it says under "sparsity"; None for a dense one, which has no masks.
        source: named in errors.

    Raises:
        CheckpointError: a record of something else, or weights that do not hold the pattern.
    """
    if record is None:
        return {}
    weights = record.get("weights") if isinstance(record, dict) and record.get("pattern") == PATTERN else None
    if not isinstance(weights, dict) or record.get("rule") not in WIDTH_RULES:
        raise CheckpointError(
            f"{source} has a sparsity that this version does not know",
            expected=f'"pattern": "{PATTERN}", a rule and the weights that hold it',
            remedy="use the version that wrote it, or prune again",
        )
    for name, dim in weights.items():
        weight = state.get(name)
        if weight is None or type(dim) is not int or not 0 <= dim < weight.dim() or not holds(weight, dim):
            raise CheckpointError(
                f"{source} says that {name} is 2:4, but it is not",
                expected="at most two weights in each four input channels",
                remedy="fine-tune 2:4 checkpoints with altermoma, which keeps their masks, or prune again",
            )
    return {name: best_two(state[name].abs(), dim) for name, dim in weights.items()}
