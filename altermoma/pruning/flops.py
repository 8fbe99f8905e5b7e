"""FLOPs (2 x MAC) of a model on a reference frame: per layer and stage, sparse layers by real and by padded pairs.

*Padded* counts what the graph executes: every entry of a sparse convolution's table, occupied or not, and the pillars'
rows of zeros. *Real* counts the entries that have a source voxel, and the rows that are points. BEV pooling counts its
products of depth weights and features; element-wise work, norms, softmax and sums are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.models.modes import eval_mode
from altermoma.models.pillars import PillarEncoder
from altermoma.models.sparse_encoder import GatherConv
from altermoma.models.swin import WindowAttention
from altermoma.pruning.channels import ChannelGroup, Slice
from altermoma.pruning.costs import CostModel

PairCount = Literal["padded", "real"]

POOLING = "view_transform.pooling"
"""The module that sums lifted pixels: no weights, but work per channel."""

STAGES: dict[str, str] = {
    "img_backbone": "camera",
    "img_neck": "camera",
    POOLING: "view",
    "view_transform.downsample": "view",
    "view_transform": "camera",
    "pts_middle_encoder": "lidar",
    "pts_voxel_encoder": "lidar",
    "fusion_layer": "fusion",
    "pts_backbone": "fusion",
    "pts_neck": "fusion",
    "bbox_head": "head",
    "map_head": "head",
}
"""Stage by module prefix; the first that fits counts."""


@dataclass(frozen=True, kw_only=True)
class LayerFlops:
    """FLOPs of one module without its children, per frame. `padded` and `real` differ for sparse convolutions only."""

    name: str
    stage: str
    padded: float
    real: float

    def count(self, pairs: PairCount) -> float:
        return self.padded if pairs == "padded" else self.real


@dataclass(frozen=True, kw_only=True)
class FlopReport:
    """Layers with FLOPs, in order of definition."""

    layers: tuple[LayerFlops, ...]

    def total(self, pairs: PairCount = "padded") -> float:
        return sum(layer.count(pairs) for layer in self.layers)

    def by_stage(self, pairs: PairCount = "padded") -> dict[str, float]:
        """FLOPs of each stage, in stage order."""
        found = dict.fromkeys(STAGES.values(), 0.0)
        for layer in self.layers:
            found[layer.stage] = found.get(layer.stage, 0.0) + layer.count(pairs)
        return found

    def to_json(self) -> dict[str, Any]:
        """Totals and stages in FLOPs per frame."""
        return {
            "total": self.total(),
            "total_real": self.total("real"),
            "by_stage": self.by_stage(),
            "by_stage_real": self.by_stage("real"),
        }


def stage_of(module: str) -> str:
    """The stage a module belongs to; "other" for a model that is not a camera-LiDAR detector."""
    return next((stage for prefix, stage in STAGES.items() if f"{module}.".startswith(f"{prefix}.")), "other")


def count_flops(model: nn.Module, batch: FrameBatch) -> FlopReport:
    """Runs the model once and counts.

    Args:
        model: a fusion model, dense or pruned; its mode and weights are untouched.
        batch: the reference frame; of several frames the mean is taken.
    """
    counter = FlopCounterMode(display=False)
    batch = batch.to(next(model.parameters()).device)
    with _occupancy(model) as occupied, eval_mode(model), torch.no_grad(), counter:
        model(batch)
    layers = []
    for name, flops in _own_flops(model, counter).items():
        padded = flops / batch.size
        layers.append(LayerFlops(name=name, stage=stage_of(name), padded=padded, real=padded * occupied.get(name, 1.0)))
    report = FlopReport(layers=tuple(layers))
    _check_complete(report.total() * batch.size, float(counter.get_total_flops()))
    return report


def _own_flops(model: nn.Module, counter: FlopCounterMode) -> dict[str, float]:
    """FLOPs of each module that did some by itself, without its children's."""
    root = type(model).__name__
    own: dict[str, float] = {}

    def visit(module: nn.Module, name: str) -> float:
        """FLOPs of the module with its children; a module that was not called as such (a list) has its children's."""
        inside = sum(visit(child, f"{name}.{key}") for key, child in module.named_children())
        if name not in counter.flop_counts:
            return inside
        total = float(sum(counter.flop_counts[name].values()))
        if total > inside:
            own[name.removeprefix(f"{root}.")] = total - inside
        return total

    visit(model, root)
    return own


def _check_complete(listed: float, counted: float) -> None:
    if abs(listed - counted) > 1e-6 * counted:
        raise PruningError(
            f"layers add up to {listed:.6g} FLOPs of {counted:.6g} counted",
            expected="every product inside a module with a name",
        )


@contextmanager
def _occupancy(model: nn.Module) -> Iterator[dict[str, float]]:
    """Yields a dict that fills with the share of real work of each sparse layer that runs: occupied entries, points."""
    shares: dict[str, float] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, GatherConv | PillarEncoder):

            def record(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                shares.update(_real_shares(name, module, inputs))

            hooks.append(module.register_forward_pre_hook(record))
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()


def _real_shares(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> dict[str, float]:
    """Layer -> share of its work that is real, from what a sparse module is called with."""
    if isinstance(module, PillarEncoder):
        points: Tensor = inputs[0]["points"]
        share = float(points.any(dim=1).sum()) / max(len(points), 1)
        return {f"{name}.pfn_layers.{index}.linear": share for index in range(len(module.pfn_layers))}
    rows, tables = inputs
    occupied = sum(float((table < rows.shape[0]).sum()) for table in tables)
    return {name: occupied / max(sum(table.numel() for table in tables), 1)}


def flop_costs(
    model: nn.Module, report: FlopReport, groups: Sequence[ChannelGroup], pairs: PairCount = "padded"
) -> CostModel:
    """FLOPs as a function of widths: each layer's are proportional to the elements of its weight, those of a window
    attention's products to the dimensions of its heads.

    Args:
        model: the dense model.
        report: its FLOPs on the reference frame.
        groups: all its channel groups.
        pairs: how sparse convolutions are counted.

    Raises:
        PruningError: a layer with prunable channels that did no counted work.
    """
    shapes = dict(tensor_shapes(model))
    factors: dict[str, float] = {}
    lines = {group.name: group for group in groups}
    for layer in report.layers:
        module = model.get_submodule(layer.name)
        if isinstance(module, WindowAttention):
            # Scores and weighted values: each product costs the same per dimension of a head.
            parts = [f"{layer.name}.{part}" for part in ("queries", "values")]
            each = layer.count(pairs) / sum(lines[part].width for part in parts)
            for part in parts:
                line = lines[part]
                shapes[part], factors[part] = (line.width,), each
                lines[part] = replace(line, members=(*line.members, Slice(tensor=part, dim=0, produces=True)))
        elif len(shapes.get(f"{layer.name}.weight", ())) >= 2:
            factors[f"{layer.name}.weight"] = layer.count(pairs) / _elements(shapes[f"{layer.name}.weight"])
    for group in groups:
        for member in group.members:
            if len(shapes[member.tensor]) >= 2 and member.tensor not in factors:
                raise PruningError(
                    f"no FLOPs were counted for {member.tensor}",
                    expected="every prunable layer to run on the reference frame",
                    remedy="take a reference frame with LiDAR points",
                )
    covering: Sequence[ChannelGroup] = list(lines.values())
    for layer in report.layers:
        if layer.name == POOLING:
            covering, channels = _with_pooling(model, covering)
            shapes, factors[POOLING] = {**shapes, POOLING: (channels,)}, layer.count(pairs) / channels
    rest = sum(
        layer.count(pairs)
        for layer in report.layers
        if factors.keys().isdisjoint((layer.name, f"{layer.name}.weight", f"{layer.name}.queries"))
    )
    return CostModel(shapes, factors, covering, rest)


def time_costs(
    model: nn.Module, report: FlopReport, groups: Sequence[ChannelGroup], layer_ms: Mapping[str, float]
) -> CostModel:
    """Measured time as a function of widths, each layer's in proportion to its weight as `flop_costs` has it.

    Args:
        model: the dense model.
        report: its FLOPs, which name the layers.
        groups: all its channel groups.
        layer_ms: milliseconds of layers; one that is not named takes no time.
    """
    layers = (replace(layer, padded=layer_ms.get(layer.name, 0.0)) for layer in report.layers)
    return flop_costs(model, FlopReport(layers=tuple(layers)), groups)


def _with_pooling(model: nn.Module, groups: Sequence[ChannelGroup]) -> tuple[Sequence[ChannelGroup], int]:
    """Groups that also cover the pooling, which has no weight but works per lifted channel; and how many it has."""
    lift = cast(nn.Sequential, model.get_submodule("view_transform.depthnet"))
    bins = cast(int, model.get_submodule("view_transform").depth_bins)
    last = f"view_transform.depthnet.{len(lift) - 1}.weight"
    covering = []
    for group in groups:
        extra = [
            replace(member, tensor=POOLING, offset=member.offset - bins)
            for member in group.members
            if (member.tensor, member.dim) == (last, 0)
        ]
        covering.append(replace(group, members=(*group.members, *extra)))
    return covering, cast(nn.Conv2d, lift[-1]).weight.shape[0] - bins


def parameter_costs(model: nn.Module, groups: Sequence[ChannelGroup]) -> CostModel:
    """Parameters as a function of widths (buffers are not parameters)."""
    return CostModel(tensor_shapes(model), {name: 1.0 for name, _ in model.named_parameters()}, groups)


def tensor_shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor of the state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _elements(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
