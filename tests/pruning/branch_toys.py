"""A two-branch toy model in float64, its channel groups written by hand, and the method's equations taken literally."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altermoma.pruning.channels import ChannelGroup, Slice

Batch = tuple[dict[str, Tensor], Tensor]


class TwoBranches(nn.Module):
    """Camera and LiDAR branch (convolution, norm, ReLU, convolution), fused by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.cam1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.cam_bn = nn.BatchNorm2d(4)
        self.cam2 = nn.Conv2d(4, 3, 1)
        self.lid1 = nn.Conv2d(2, 5, 3, padding=1, bias=False)
        self.lid_bn = nn.BatchNorm2d(5)
        self.lid2 = nn.Conv2d(5, 2, 1, bias=False)
        self.fuse = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.fuse_bn = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, batch: dict[str, Tensor], masked: str = "none") -> Tensor:
        camera = self.cam2(torch.relu(self.cam_bn(self.cam1(batch["camera"]))))
        lidar = self.lid2(torch.relu(self.lid_bn(self.lid1(batch["lidar"]))))
        camera = torch.zeros_like(camera) if masked == "camera" else camera
        lidar = torch.zeros_like(lidar) if masked == "lidar" else lidar
        fused = torch.relu(self.fuse_bn(self.fuse(torch.cat([camera, lidar], dim=1))))
        return self.head(fused)

    @staticmethod
    def partition_of(name: str) -> str:
        return {"cam": "camera", "lid": "lidar"}.get(name[:3], "fusion")


def toy_model(seed: int = 0) -> TwoBranches:
    """Random weights and norm statistics, float64, in training mode."""
    torch.manual_seed(seed)
    model = TwoBranches().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.2, 1.2)
    return model.train()


def toy_batches(count: int, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [({"camera": random(2, 3, 5, 5), "lidar": random(2, 2, 5, 5)}, random(2, 2, 5, 5)) for _ in range(count)]


def toy_loss(model: Any, batch: Any, truths: Any, masked: Any) -> Tensor:
    return ((model(batch, masked) - truths) ** 2).mean()


def _group(name: str, partition: Any, width: int, made: Sequence[str], read: tuple[str, int, int]) -> ChannelGroup:
    makers = [Slice(tensor=tensor, dim=0, produces=True) for tensor in made]
    reader = Slice(tensor=read[0], dim=1, offset=read[1], repeat=read[2], produces=False)
    return ChannelGroup(name=name, partition=partition, width=width, members=(*makers, reader))


def _norm(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias", f"{name}.running_mean", f"{name}.running_var"]


TOY_GROUPS: tuple[ChannelGroup, ...] = (
    _group("cam1", "camera", 4, ["cam1.weight", *_norm("cam_bn")], ("cam2.weight", 0, 1)),
    _group("cam2", "camera", 3, ["cam2.weight", "cam2.bias"], ("fuse.weight", 0, 1)),
    _group("lid1", "lidar", 5, ["lid1.weight", *_norm("lid_bn")], ("lid2.weight", 0, 1)),
    _group("lid2", "lidar", 2, ["lid2.weight"], ("fuse.weight", 3, 1)),
    _group("fuse", "fusion", 6, ["fuse.weight", *_norm("fuse_bn")], ("head.weight", 0, 1)),
)


def channel_entries(group: ChannelGroup, channel: int, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Boolean mask per parameter of what the channel consists of."""
    masks: dict[str, Tensor] = {}
    for member in group.members:
        if member.tensor in parameters:
            mask = masks.setdefault(member.tensor, torch.zeros_like(parameters[member.tensor], dtype=torch.bool))
            for part in range(member.repeat):
                mask.select(member.dim, member.offset + channel * member.repeat + part)[...] = True
    return masks


def naive_gradient(model: TwoBranches, batch: Batch, masked: str, *, train: bool = False) -> dict[str, Tensor]:
    model = copy.deepcopy(model).train(train)
    toy_loss(model, *batch, masked).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def naive_reactivated(
    model: TwoBranches, batches: Sequence[Batch], masked: str, lr: float, *, train: bool = False
) -> TwoBranches:
    """B plain gradient steps by torch's own optimiser."""
    model = copy.deepcopy(model).train(train)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    for batch in batches:
        optimiser.zero_grad()
        toy_loss(model, *batch, masked).backward()
        optimiser.step()
    return model


def naive_terms(theta: dict[str, Tensor], change: dict[str, Tensor], aggregation: str) -> dict[str, list[float]]:
    """|theta * gradient| of each channel, one channel at a time."""
    found = {}
    for group in TOY_GROUPS:
        values = []
        for channel in range(group.width):
            entries = channel_entries(group, channel, theta)
            terms = torch.cat([(theta[name] * change[name])[mask] for name, mask in entries.items()])
            values.append(float(terms.sum().abs() if aggregation == "channel" else terms.abs().sum()))
        found[group.name] = values
    return found


def _sum(parts: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    return {name: [sum(values) for values in zip(*(part[name] for part in parts), strict=True)] for name in parts[0]}


def naive_deci(model: TwoBranches, batches: Sequence[Batch], aggregation: str) -> dict[str, list[float]]:
    """Eq. 4-6."""
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    return _sum([naive_terms(theta, naive_gradient(model, batch, "none"), aggregation) for batch in batches])


def naive_reri(
    model: TwoBranches, batches: Sequence[Batch], last: int, masked: str, aggregation: str, lr: float
) -> dict[str, list[float]]:
    """Eq. 7-10, both terms with the initial parameters."""
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    later = naive_reactivated(model, batches, masked, lr)
    parts = []
    for batch in batches[-last:]:
        before, after = naive_gradient(model, batch, masked), naive_gradient(later, batch, masked)
        parts.append(naive_terms(theta, {n: before[n] - after[n] for n in theta}, aggregation))
    return _sum(parts)


def naive_scores(
    deci: dict[str, list[float]], reri: dict[str, dict[str, list[float]]], alpha: float, beta: float
) -> dict[str, list[float]]:
    """Eq. 11-13, one channel at a time."""

    def share(indicator: dict[str, list[float]], group: ChannelGroup, channel: int) -> float:
        partition = [g.name for g in TOY_GROUPS if g.partition == group.partition]
        return indicator[group.name][channel] / sum(sum(indicator[name]) for name in partition)

    scores: dict[str, list[float]] = {}
    for group in TOY_GROUPS:
        scores[group.name] = []
        for channel in range(group.width):
            contribution = alpha * share(deci, group, channel)
            if group.partition == "camera":
                redundancy = beta * share(reri["lidar"], group, channel)
            elif group.partition == "lidar":
                redundancy = beta * share(reri["camera"], group, channel)
            else:
                redundancy = beta / 2 * share(reri["lidar"], group, channel)
                redundancy += beta / 2 * share(reri["camera"], group, channel)
            scores[group.name].append(contribution - redundancy)
    return scores
