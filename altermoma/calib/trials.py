"""mAP of a model with a part of its layer groups in int8; every trial is kept, so that a killed search goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from altermoma.calib.insert import ONNX_RUNTIME, Dialect
from altermoma.calib.int8 import StagePlan, quantised
from altermoma.calib.scales import Range
from altermoma.export.parity import open_session, run_session
from altermoma.storage import content_key, read_json, write_json

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
Score = Callable[[Run], float]
"""mAP, 0 to 1, of what gives the last stage's outputs for the graph inputs of a frame."""


class Trials:
    """Scores of parts of a model.

    Args:
        plans: stages in the order in which they run.
        ranges: by stage and tensor.
        score: evaluates a model on the validation split.
        kept: file of the trials so far.
        dialects: runtimes that a part is scored in; its score is the worst of them.
    """

    def __init__(
        self,
        plans: Mapping[str, StagePlan],
        ranges: Mapping[str, Mapping[str, Range]],
        score: Score,
        kept: Path,
        dialects: tuple[Dialect, ...] = (ONNX_RUNTIME,),
    ) -> None:
        self.plans, self.ranges, self._score, self._kept, self.dialects = plans, ranges, score, kept, dialects
        self._known: dict[str, float] = read_json(kept) if kept.is_file() else {}
        self._state = content_key(
            {stage: {name: [r.low, r.high] for name, r in tensors.items()} for stage, tensors in ranges.items()}
        )

    def map_of(self, groups: frozenset[str]) -> float:
        """mAP with these groups in int8 and all others in fp32; of the worst runtime."""
        dialects = self.dialects if groups else self.dialects[:1]
        return min(self._map_of(groups, dialect) for dialect in dialects)

    def quick_map_of(self, groups: frozenset[str]) -> float:
        """The same, of the first runtime alone."""
        return self._map_of(groups, self.dialects[0])

    def _map_of(self, groups: frozenset[str], dialect: Dialect) -> float:
        key = content_key([self._state, sorted(groups), repr(dialect) if groups else ""])
        if key not in self._known:
            self._known[key] = self._score(chain(self.graphs(groups, dialect)))
            write_json(self._kept, self._known)
        return self._known[key]

    def graphs(self, groups: frozenset[str], dialect: Dialect) -> dict[str, onnx.ModelProto]:
        return {name: quantised(plan, groups, self.ranges[name], dialect) for name, plan in self.plans.items()}


def chain(graphs: Mapping[str, onnx.ModelProto]) -> Run:
    """All stages in order, on ONNX Runtime."""
    sessions = [open_session(graph) for graph in graphs.values()]

    def run(inputs: Arrays) -> Arrays:
        known = dict(inputs)
        for session in sessions:
            known |= run_session(session, known)
        return known

    return run
