"""The largest int8 share of a model that costs no more accuracy than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from altermoma.calib.sensitivity import GroupHarm
from altermoma.calib.trials import Trials
from altermoma.errors import ExportError
from altermoma.progress import busy


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search ends with.

    Attributes:
        groups: that become int8.
        left_out: those that stay, the most harmful first.
        map_fp32, map_int8: 0 to 1, of the worst runtime.
        ranking: every candidate with its harm.
    """

    groups: frozenset[str]
    left_out: tuple[str, ...]
    map_fp32: float
    map_int8: float
    ranking: tuple[GroupHarm, ...]

    @property
    def drop(self) -> float:
        """Points of mAP."""
        return 100 * (self.map_fp32 - self.map_int8)

    def to_dict(self) -> dict[str, Any]:
        return {
            "map_fp32": self.map_fp32,
            "map_int8": self.map_int8,
            "left_out": list(self.left_out),
            "ranking": [harm.to_dict() for harm in self.ranking],
        }


def search(trials: Trials, ranking: Sequence[GroupHarm], max_drop: float) -> Found:
    """Leaves out as few of the most harmful groups as suffice, then takes back those that turn out not to matter.

    The number left out is found by halving, as if harm only fell with it; what is returned was measured as it is.

    Args:
        trials: that score parts of the model.
        ranking: candidates, the most harmful first.
        max_drop: points of mAP that may be lost.

    Raises:
        ExportError: no group can be int8 within the budget.
    """
    names = [harm.group for harm in ranking]
    dense = trials.map_of(frozenset())

    def fits(groups: frozenset[str]) -> bool:
        return 100 * (dense - trials.map_of(groups)) <= max_drop

    with busy("Searching the largest int8 share"):
        out = _fewest(names, fits)
        groups = frozenset(names[out:])
        for harm in sorted(ranking[:out], key=lambda harm: -harm.macs):
            if fits(groups | {harm.group}):
                groups |= {harm.group}
    if not groups:
        best = min((100 * (dense - trials.map_of(frozenset([name]))) for name in names), default=0.0)
        raise ExportError(
            f"no layer group can be int8 within {max_drop:g} points of mAP: the least harmful alone costs {best:.2f}",
            expected="a budget that one group at least can keep",
            remedy="raise --max-map-drop, calibrate with more frames, or with another method",
        )
    left = tuple(name for name in names if name not in groups)
    return Found(groups=groups, left_out=left, map_fp32=dense, map_int8=trials.map_of(groups), ranking=tuple(ranking))


def _fewest(names: Sequence[str], fits: Any) -> int:
    """Least number of leading names that must go, by halving; all of them where even that does not do."""
    if fits(frozenset(names)):
        return 0
    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(frozenset(names[middle:])):
            high = middle
        else:
            low = middle
    return high
