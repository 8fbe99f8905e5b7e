"""The head's choice of proposals, checked apart from what it computes for them.

Proposals are the highest local maxima of a heatmap. Rounding exchanges some whose scores nearly tie, and because all
proposals attend to each other, one exchanged changes the numbers of the rest a little. So there are two checks: which
cells the graph chooses may differ from torch's only as far as rounded scores explain it; and with torch's choice put
in place of its own, everything that the graph computes is compared number by number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.errors import ExportError
from altermoma.export.graph import INT64, copy_model, drop_dead, redirect

CHOSEN, SCORES, MARGINS = "chosen_proposals", "proposal_scores", "proposal_margins"
"""Names among torch's answers: its choice [1, P], and of every class and cell, flat [1, K * X * Y], the score and how
far it lies above its neighbours. None of them is an output of the stage."""

Array = NDArray[Any]


def choice_shown(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a head's graph that also gives the entries it chose, as its last output `chosen_proposals`."""
    twin = copy_model(model)
    choice = _top_k(twin).output[1]
    twin.graph.node.append(onnx.helper.make_node("Identity", [choice], [CHOSEN], name=CHOSEN))
    twin.graph.output.append(onnx.helper.make_tensor_value_info(CHOSEN, INT64, None))
    return twin


def choice_fixed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a head's graph that is told what to choose, by its last input `chosen_proposals`."""
    twin = copy_model(model)
    redirect(twin, _top_k(twin).output[1], CHOSEN)
    drop_dead(twin)
    twin.graph.input.append(onnx.helper.make_tensor_value_info(CHOSEN, INT64, [1, "proposals"]))
    del twin.graph.value_info[:]
    return twin


def _top_k(model: onnx.ModelProto) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [node for node in model.graph.node if node.op_type == "TopK"]
    if len(found) != 1:
        raise ExportError(
            f"graph {model.graph.name} has {len(found)} TopK nodes",
            expected="one, which chooses the proposals",
            remedy="leave `unordered` out of the contract of a stage that lists no proposals",
        )
    return found[0]


@dataclass(frozen=True, kw_only=True)
class ChoiceDrift:
    """How far one choice is from another.

    Attributes:
        needed: the least rounding of single scores that makes the choice right; infinite if none does.
        mean: the sum of what every entry needs by itself, over the number of proposals.
        cosine: of both lists of scores, highest first.
        largest: of torch's chosen scores.
    """

    needed: float
    mean: float
    cosine: float
    largest: float


def choice_drift(chosen_p: Array, scores_n: Array, margins_n: Array, found_p: Array) -> ChoiceDrift:
    """Compares the entries that a graph chose with torch's.

    An entry is rightly chosen if it is a local maximum, and one is rightly left out if it is none, or if no score below
    its own was chosen. Two scores are involved each time, so that the rounding needed is half of what is missing.

    Args:
        chosen_p: entries that torch chose.
        scores_n: torch's scores.
        margins_n: how far each is above its neighbours; not above zero where it is no local maximum.
        found_p: entries that the graph chose.
    """
    chosen, found, scores, margins = chosen_p.ravel(), found_p.ravel(), scores_n.ravel(), margins_n.ravel()
    largest = float(scores[chosen].max(initial=0.0))
    sound = len(np.unique(found)) == len(found) == len(chosen) and bool(((found >= 0) & (found < len(scores))).all())
    if not sound:
        return ChoiceDrift(needed=np.inf, mean=np.inf, cosine=0.0, largest=largest)
    others = np.ones(len(scores), bool)
    others[found] = False
    missed = np.minimum(margins[others], scores[others] - scores[found].min(initial=np.inf))
    steps = np.concatenate([-margins[found], missed]).clip(min=0.0).astype(np.float64) / 2
    before, after = (np.sort(scores[entries].astype(np.float64)) for entries in (chosen, found))
    norm = float(np.linalg.norm(before) * np.linalg.norm(after))
    return ChoiceDrift(
        needed=float(np.nan_to_num(steps.max(initial=0.0), nan=np.inf, posinf=np.inf)),
        mean=float(np.nan_to_num(steps.sum() / max(len(chosen), 1), nan=np.inf, posinf=np.inf)),
        cosine=float(before @ after) / norm if norm > 0 else float(not before.any() and not after.any()),
        largest=largest,
    )
