"""Weights of other widths than the preset's: accepted only where every layer's width agrees with its neighbours'."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from altermoma.errors import CheckpointError
from altermoma.models.fusion import FusionModel
from altermoma.models.rebuild import load_by_shape
from altermoma.pruning.channels import ChannelGroup
from altermoma.pruning.groups import fusion_groups

Shapes = Mapping[str, Sequence[int]]


def load_pruned(model: FusionModel, state: Mapping[str, Tensor], *, source: str) -> None:
    """Gives a preset the widths and weights of `state`, dense or pruned.

    Raises:
        CheckpointError: other names or kernels than the preset's, or widths that contradict each other.
    """
    groups = fusion_groups(model)
    dense = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    load_by_shape(model, state)
    widths_of(groups, dense, {name: tuple(tensor.shape) for name, tensor in state.items()}, source=source)


def widths_of(groups: Sequence[ChannelGroup], dense: Shapes, shapes: Shapes, *, source: str) -> dict[str, int]:
    """Channels of each group, from the shapes of a pruned model's tensors.

    Args:
        groups: channel groups of the dense model.
        dense: its shapes.
        shapes: shapes of the pruned one, under the same names.
        source: named in errors.

    Raises:
        CheckpointError: a dimension that cannot be pruned differs from the dense one, or two tensors of a group say
            different widths.
    """
    lines = _lines(groups, dense, shapes)
    widths: dict[str, int] = {}
    waiting = lines
    while waiting:
        # Most dimensions hold one group; one that holds several waits until all but one are known.
        ready = [line for line in waiting if len(line.unknown(widths)) == 1]
        for line in ready:
            line.settle(widths, source)
        waiting = [line for line in waiting if line.unknown(widths)] if ready else []
    for line in lines:
        line.settle(widths, source)
    return widths


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One dimension of one tensor: its size, what of it stays in any case, and entries per channel of each group."""

    tensor: str
    dim: int
    size: int
    constant: int
    repeats: Mapping[str, int]

    def unknown(self, widths: Mapping[str, int]) -> list[str]:
        """Groups here whose width is not known yet."""
        return [name for name in self.repeats if name not in widths]

    def settle(self, widths: dict[str, int], source: str) -> None:
        """Adds the width that is still unknown; an error where it is none, or where known ones do not add up."""
        unknown = self.unknown(widths)
        known = self.constant + sum(widths[name] * repeat for name, repeat in self.repeats.items() if name in widths)
        if not unknown and known == self.size:
            return
        if unknown:
            width, rest = divmod(self.size - known, self.repeats[unknown[0]])
            if rest == 0 and width > 0:
                widths[unknown[0]] = width
                return
        raise CheckpointError(
            f"{source}: {self.tensor} has {self.size} entries along dimension {self.dim}",
            expected=f"{known} and some times {self.repeats[unknown[0]]}" if unknown else f"{known}, as others have it",
            remedy="take the checkpoint as altermoma prune wrote it; no width can be changed in one tensor alone",
        )


def _lines(groups: Sequence[ChannelGroup], dense: Shapes, shapes: Shapes) -> list[_Line]:
    """Every dimension of every tensor."""
    repeats: dict[tuple[str, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    covered: dict[tuple[str, int], int] = defaultdict(int)
    for group in groups:
        for member in group.members:
            repeats[member.tensor, member.dim][group.name] += member.repeat
            covered[member.tensor, member.dim] += member.repeat * group.width
    return [
        _Line(
            tensor=name,
            dim=dim,
            size=shapes[name][dim],
            constant=size - covered[name, dim],
            repeats=repeats[name, dim],
        )
        for name, shape in dense.items()
        for dim, size in enumerate(shape)
    ]
