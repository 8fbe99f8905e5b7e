"""Streams of channels under construction, and the builder that turns them into channel groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.models.sparse_encoder import GatherConv
from altermoma.pruning.channels import ChannelGroup, Slice, check_groups
from altermoma.recipe import Partition


@runtime_checkable
class Partitioned(Protocol):
    """A model that knows which partition a parameter belongs to."""

    def partition_of(self, parameter_name: str) -> Partition: ...


@dataclass(kw_only=True)
class Stream:
    """Channels under construction: who computes them and who reads them.

    Attributes:
        producers: (convolution, norm or "", first entry of its output).
        consumers: (layer, first entry of its input, entries per channel).
    """

    producers: list[tuple[str, str, int]] = field(default_factory=list)
    consumers: list[tuple[str, int, int]] = field(default_factory=list)

    def made_by(self, conv: str, norm: str = "", offset: int = 0) -> Stream:
        self.producers.append((conv, norm, offset))
        return self

    def read_by(self, layer: str, offset: int = 0, repeat: int = 1) -> Stream:
        self.consumers.append((layer, offset, repeat))
        return self


class GroupBuilder:
    """Turns streams into channel groups of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
        self.streams: list[Stream] = []

    def stream(self, conv: str, norm: str = "", offset: int = 0) -> Stream:
        """A new stream computed by `conv` (its outputs from `offset` on) and `norm`."""
        self.streams.append(Stream().made_by(conv, norm, offset))
        return self.streams[-1]

    def has(self, module: str) -> bool:
        return any(name.startswith(f"{module}.") for name in self.tensors)

    def names(self, module: str) -> list[str]:
        """Children of a module that have tensors, in order of definition."""
        depth = len(module.split("."))
        inside = (name.split(".")[depth] for name in self.tensors if name.startswith(f"{module}."))
        return [f"{module}.{name}" for name in dict.fromkeys(inside)]

    def children(self, module: str) -> list[str]:
        """Numbered children of a module that have tensors, by number."""
        found = [name for name in self.names(module) if name.rpartition(".")[2].isdigit()]
        return sorted(found, key=lambda name: int(name.rpartition(".")[2]))

    def width(self, stream: Stream) -> int:
        """Channels of a stream: what its first producer computes from its offset on."""
        conv, _, offset = stream.producers[0]
        return self.out_width(conv) - offset

    def check_reads(self, layer: str, width: int) -> None:
        """A layer must read exactly the channels that the table says reach it."""
        if self.in_width(layer) != width:
            raise PruningError(f"{layer} reads {self.in_width(layer)} channels", expected=f"{width} that reach it")

    def depth_bins(self, root: str) -> int:
        """Depth bins of the lift: the part of the last depthnet layer's output that stays."""
        bins = getattr(self.model.get_submodule(root), "depth_bins", None)
        if not isinstance(bins, int):
            raise PruningError(f"{root} has no whole number depth_bins", expected="a DepthLSS view transform")
        return bins

    def out_width(self, layer: str) -> int:
        return int(self.tensors[f"{layer}.weight"].shape[self.dims(layer)[0]])

    def in_width(self, layer: str) -> int:
        return int(self.tensors[f"{layer}.weight"].shape[self.dims(layer)[1]])

    def dims(self, layer: str) -> tuple[int, int]:
        """Dimensions of a layer's weight that count its outputs and its inputs."""
        module = self.model.get_submodule(layer)
        if isinstance(module, GatherConv):
            return 0, 4
        if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
            return 1, 0
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1:
            return 0, 1
        raise PruningError(
            f"{layer} is a {type(module).__name__}", expected="a convolution (not grouped) or linear layer"
        )

    def groups(self) -> tuple[ChannelGroup, ...]:
        """Every stream as a channel group, checked."""
        found = tuple(self._group(stream) for stream in self.streams)
        check_groups(found, {name: tensor.shape for name, tensor in self.tensors.items()})
        return found

    def _group(self, stream: Stream) -> ChannelGroup:
        first = stream.producers[0][0]
        members: list[Slice] = []
        for conv, norm, start in stream.producers:
            members.append(Slice(tensor=f"{conv}.weight", dim=self.dims(conv)[0], offset=start, produces=True))
            per_channel = [f"{conv}.bias", *(f"{norm}.{x}" for x in ("weight", "bias", "running_mean", "running_var"))]
            members += [Slice(tensor=t, dim=0, offset=start, produces=True) for t in per_channel if t in self.tensors]
        for layer, start, repeat in stream.consumers:
            dim = self.dims(layer)[1]
            members.append(Slice(tensor=f"{layer}.weight", dim=dim, offset=start, repeat=repeat, produces=False))
        return ChannelGroup(
            name=first,
            partition=self._partition(stream),
            width=self.width(stream),
            members=tuple(members),
        )

    def _partition(self, stream: Stream) -> Partition:
        """The one partition of everything that computes the stream."""
        first = stream.producers[0][0]
        if not isinstance(self.model, Partitioned):
            raise PruningError(f"{type(self.model).__name__} has no partition_of", expected="a model with partitions")
        found = {self.model.partition_of(f"{conv}.weight") for conv, _, _ in stream.producers}
        if len(found) != 1:
            raise PruningError(f"producers of {first} lie in partitions {sorted(found)}", expected="one partition")
        return found.pop()
