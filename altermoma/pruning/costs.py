"""What a choice of widths costs, computed from the channel groups without running the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelGroup, Slice

Widths = Mapping[str, int]
"""Channels of each group; a group that is not named keeps its dense width."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One dimension of a weight: its dense size, and what lies there: (group, dense width, entries per channel)."""

    size: int
    covered: tuple[tuple[str, int, int], ...]

    def at(self, widths: Widths) -> int:
        return self.size - sum((width - widths.get(name, width)) * repeat for name, width, repeat in self.covered)


@dataclass(frozen=True, kw_only=True)
class Term:
    """`factor` times the number of elements of one tensor."""

    tensor: str
    factor: float
    dims: tuple[Dimension, ...]

    def at(self, widths: Widths) -> float:
        return self.factor * math.prod(dim.at(widths) for dim in self.dims)


class CostModel:
    """Sum over tensors of factor * elements, plus a constant: FLOPs, parameters or channels of any width choice.

    At a fixed resolution a convolution's FLOPs are proportional to the elements of its weight; so the factor is its
    dense FLOPs per element.

    Args:
        shapes: shapes of the tensors of the dense state dict.
        factors: cost per element of each tensor that counts.
        groups: channel groups.
        constant: cost that no width changes.

    Raises:
        PruningError: a factor for an unknown tensor.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        factors: Mapping[str, float],
        groups: Sequence[ChannelGroup],
        constant: float = 0.0,
    ) -> None:
        along: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
        for group in groups:
            for member in group.members:
                along.setdefault((member.tensor, member.dim), []).append((group.name, group.width, member.repeat))
        self.constant = constant
        self.terms: list[Term] = []
        self._touched: dict[str, list[Term]] = {group.name: [] for group in groups}
        for name, factor in factors.items():
            if name not in shapes:
                raise PruningError(f"a cost is given for {name}", expected="a tensor of the model")
            dims = tuple(Dimension(size=n, covered=tuple(along.get((name, d), ()))) for d, n in enumerate(shapes[name]))
            term = Term(tensor=name, factor=factor, dims=dims)
            self.terms.append(term)
            for group_name in {owner for dim in dims for owner, _, _ in dim.covered}:
                self._touched[group_name].append(term)
        self.dense = self.total({})

    def total(self, widths: Widths) -> float:
        """Cost of the whole model at these widths."""
        return self.constant + sum(term.at(widths) for term in self.terms)

    def touches(self, group: str) -> bool:
        """Whether the width of a group changes this cost."""
        return bool(self._touched.get(group))

    def removed_share(self, widths: Widths) -> float:
        """Share of the dense cost that these widths remove."""
        return 1.0 - self.total(widths) / self.dense

    def saving(self, widths: Widths, group: str, width: int) -> float:
        """Cost saved by setting one group to `width` while the others stay at `widths`."""
        changed = {**widths, group: width}
        return sum(term.at(widths) - term.at(changed) for term in self._touched[group])


def channel_costs(groups: Sequence[ChannelGroup]) -> CostModel:
    """Counts the channels of `groups`, each residual stream once."""
    lines = [replace(group, members=(Slice(tensor=group.name, dim=0, produces=True),)) for group in groups]
    return CostModel({g.name: (g.width,) for g in groups}, {g.name: 1.0 for g in groups}, lines)
