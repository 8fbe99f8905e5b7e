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
        fixed: channels of a stream that cannot be pruned; 0 for one that can.
    """

    producers: list[tuple[str, str, int]] = field(default_factory=list)
    consumers: list[tuple[str, int, int]] = field(default_factory=list)
    fixed: int = 0

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
        self.attentions: list[ChannelGroup] = []

    def stream(self, conv: str, norm: str = "", offset: int = 0) -> Stream:
        """A new stream computed by `conv` (its outputs from `offset` on) and `norm`."""
        self.streams.append(Stream().made_by(conv, norm, offset))
        return self.streams[-1]

    def attention(self, root: str) -> None:
        """The dimensions of a window attention's heads: those of queries and keys, and those of values.

        A channel is the dimension of that number in every head, so that all heads keep the same size. The rows of
        `qkv` are queries, keys, values, each head by head; the product with the queries reads the keys.
        """
        heads, values, queries = self.head_dims(root)
        starts = [head * queries for head in range(heads)]
        keys, first_value = heads * queries, 2 * heads * queries
        members = _rows(f"{root}.qkv", starts, produces=True)
        members += _rows(f"{root}.qkv", [keys + start for start in starts], produces=False)
        self._attention_group(f"{root}.queries", queries, members)
        starts = [head * values for head in range(heads)]
        members = _rows(f"{root}.qkv", [first_value + start for start in starts], produces=True)
        members += [Slice(tensor=f"{root}.proj.weight", dim=1, offset=start, produces=False) for start in starts]
        self._attention_group(f"{root}.values", values, members)

    def head_dims(self, root: str) -> tuple[int, int, int]:
        """Heads of a window attention, and the value and query dimensions of each."""
        heads = int(self.tensors[f"{root}.relative_position_bias_table"].shape[1])
        values = self.in_width(f"{root}.proj")
        queries = self.out_width(f"{root}.qkv") - values
        if values % heads or queries % (2 * heads):
            raise PruningError(
                f"{root} has {heads} heads, {values} values and {queries} queries and keys",
                expected="the same whole number of values, and of queries and keys, in every head",
            )
        return heads, values // heads, queries // (2 * heads)

    def _attention_group(self, name: str, width: int, members: list[Slice]) -> None:
        partition = self._partition_of([f"{name.rpartition('.')[0]}.qkv"])
        self.attentions.append(ChannelGroup(name=name, partition=partition, width=width, members=tuple(members)))

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
        if stream.fixed:
            return stream.fixed
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
        found = (*(self._group(stream) for stream in self.streams), *self.attentions)
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
            partition=self._partition_of([conv for conv, _, _ in stream.producers]),
            width=self.width(stream),
            members=tuple(members),
        )

    def _partition_of(self, layers: list[str]) -> Partition:
        """The one partition of everything that computes a stream."""
        if not isinstance(self.model, Partitioned):
            raise PruningError(f"{type(self.model).__name__} has no partition_of", expected="a model with partitions")
        found = {self.model.partition_of(f"{layer}.weight") for layer in layers}
        if len(found) != 1:
            raise PruningError(f"producers of {layers[0]} lie in partitions {sorted(found)}", expected="one partition")
        return found.pop()


def _rows(layer: str, starts: list[int], *, produces: bool) -> list[Slice]:
    """What a linear layer computes from each of `starts` on."""
    return [
        Slice(tensor=f"{layer}.{leaf}", dim=0, offset=start, produces=produces)
        for start in starts
        for leaf in ("weight", "bias")
    ]
