"""The head's choice of proposals, checked apart from what it computes for them.

Proposals are the highest local maxima of a heatmap. Rounding exchanges some whose scores nearly tie, and because all
proposals attend to each other, one exchanged changes the numbers of the rest a little. So there are two checks: which
cells the graph chooses may differ from torch's only as far as rounded scores explain it; and with torch's choice put
in place of its own, everything that the graph computes is compared number by number.
"""

from __future__ import annotations

import onnx

from altermoma.errors import ExportError
from altermoma.export.graph import INT64, copy_model, drop_dead, redirect

CHOSEN, SCORES, MARGINS = "chosen_proposals", "proposal_scores", "proposal_margins"
"""Names among torch's answers: its choice [1, P], and of every class and cell, flat [1, K * X * Y], the score and how
far it lies above its neighbours. None of them is an output of the stage."""


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
