"""A budget in measured milliseconds: a table per stage, from runs at several widths.

Fewer FLOPs are not as much less time, and how much less differs from stage to stage: what a gather or a softmax takes
hardly depends on channels. So a stage's time is read off its table, at the share of its FLOPs that a choice of widths
leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelGroup
from altermoma.pruning.costs import CostModel, Widths
from altermoma.pruning.flops import FlopReport, flop_costs


@dataclass(frozen=True, kw_only=True)
class StageTable:
    """Milliseconds of one stage at several widths.

    Attributes:
        shares: of its dense FLOPs, rising; the last is 1.
        ms: at each share.
    """

    shares: tuple[float, ...]
    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if len(self.shares) < 2 or len(self.ms) != len(self.shares) or not rising or min(self.ms) <= 0.0:
            raise PruningError(
                f"a latency table of shares {self.shares} and milliseconds {self.ms}",
                expected="two or more rising shares, and a time above 0 for each",
                remedy="measure again on a machine that does nothing else",
            )

    @classmethod
    def measured(cls, points: Sequence[tuple[float, float]]) -> StageTable:
        """From (share, milliseconds) in any order. Noise that makes less work slower is levelled: a time is at least
        that of every smaller share."""
        ordered = sorted(points)
        levels = np.maximum.accumulate([ms for _, ms in ordered])
        return cls(shares=tuple(share for share, _ in ordered), ms=tuple(float(ms) for ms in levels))

    def at(self, share: float) -> float:
        """Between two points a line; below the first one the line through the first two, but no less than 0."""
        if share >= self.shares[0]:
            return float(np.interp(share, self.shares, self.ms))
        slope = (self.ms[1] - self.ms[0]) / (self.shares[1] - self.shares[0])
        return max(self.ms[0] + slope * (share - self.shares[0]), 0.0)


class LatencyCost(CostModel):
    """Milliseconds of all stages at any choice of widths; see `stage_latency`."""

    def __init__(self, stages: Mapping[str, CostModel], tables: Mapping[str, StageTable]) -> None:
        missing = sorted(stages.keys() - tables.keys())
        if missing:
            raise PruningError(f"no latency table of stage {missing[0]}", expected="one of each: " + ", ".join(stages))
        self._stages, self._tables = dict(stages), dict(tables)
        super().__init__({}, {}, ())

    def total(self, widths: Widths) -> float:
        return sum(self._ms(name, widths) for name in self._stages)

    def saving(self, widths: Widths, group: str, width: int) -> float:
        changed = {**widths, group: width}
        return sum(
            self._ms(name, widths) - self._ms(name, changed)
            for name, stage in self._stages.items()
            if stage.touches(group)
        )

    def _ms(self, stage: str, widths: Widths) -> float:
        cost = self._stages[stage]
        return self._tables[stage].at(cost.total(widths) / cost.dense)


def stage_latency(
    model: nn.Module, report: FlopReport, groups: Sequence[ChannelGroup], tables: Mapping[str, StageTable]
) -> LatencyCost:
    """Time as a function of widths.

    Args:
        model: the dense model.
        report: its FLOPs on the reference frame, which say what of a stage's work is whose.
        groups: all its channel groups.
        tables: by stage name; one for each stage that has FLOPs.
    """
    stages = {}
    for stage in dict.fromkeys(layer.stage for layer in report.layers):
        layers = tuple(
            layer if layer.stage == stage else replace(layer, padded=0.0, real=0.0) for layer in report.layers
        )
        stages[stage] = flop_costs(model, FlopReport(layers=layers), groups)
    return LatencyCost(stages, tables)
