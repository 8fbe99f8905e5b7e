"""Which layer groups lose accuracy in int8: each alone, and each left out of all the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.calib.export_int8 import decibels
from altermoma.calib.int8 import StagePlan, all_groups, quantised
from altermoma.calib.scales import Range
from altermoma.calib.trials import Trials
from altermoma.export.parity import open_session, run_session
from altermoma.progress import track

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class GroupHarm:
    """What int8 in one layer group costs.

    Attributes:
        group: its name (`products.group_of`).
        macs: multiply-adds of its products on the reference frame.
        signal_db: signal-to-noise of its stage's worst output with this group alone in int8.
        alone: points of mAP lost with this group alone in int8.
        regained: points of mAP won back when everything but this group is int8.
    """

    group: str
    macs: int
    signal_db: float
    alone: float
    regained: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def rank_groups(
    trials: Trials, known: Mapping[str, NDArray[Any]], macs: Mapping[str, int], candidates: frozenset[str]
) -> list[GroupHarm]:
    """Every candidate with its harm, the worst first.

    Args:
        trials: that score parts of the model.
        known: graph inputs and fp32 outputs of all stages for one frame.
        macs: of each group.
        candidates: groups that may become int8.
    """
    names = [name for name in all_groups(trials.plans) if name in candidates]
    dense, whole = trials.quick_map_of(frozenset()), trials.quick_map_of(candidates)
    found = []
    for group in track(names, "Trying layer groups"):
        plan = trials.plans[group.split("/")[0]]
        found.append(
            GroupHarm(
                group=group,
                macs=macs.get(group, 0),
                signal_db=round(_signal(plan, group, trials.ranges[plan.contract.name], known), 2),
                alone=round(100 * (dense - trials.quick_map_of(frozenset([group]))), 3),
                regained=round(100 * (trials.quick_map_of(candidates - {group}) - whole), 3),
            )
        )
    return sorted(found, key=lambda harm: (-(harm.alone + harm.regained), harm.signal_db))


def _signal(plan: StagePlan, group: str, ranges: Mapping[str, Range], known: Mapping[str, NDArray[Any]]) -> float:
    """Of the stage's float outputs the worst; of the head's the heatmap's choice is left out of it."""
    graph = quantised(plan, frozenset([group]), ranges)
    made = run_session(open_session(graph), known)
    outputs = [name for name in made if np.issubdtype(known[name].dtype, np.floating)]
    return min(decibels(known[name], made[name]) for name in outputs)


def group_macs(plans: Mapping[str, StagePlan], rows: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Multiply-adds by layer group; `rows` by stage and tensor, of products whose rows change from frame to frame."""
    found: dict[str, int] = {}
    for stage, plan in plans.items():
        for item in plan.products:
            macs = item.macs if item.macs is not None else item.row_macs * rows[stage][item.result]
            found[item.group] = found.get(item.group, 0) + (0 if item.kept else macs)
    return found
