"""What a summary warns of."""

from __future__ import annotations

import pytest

from altermoma.recipe import ParityRecipe, Precision
from altermoma.report.summary import BoxParity
from altermoma.workflow.plan import Engine
from altermoma.workflow.summarise import busy, drift


@pytest.mark.parametrize(
    ("conditions", "warned"),
    [
        ({"load_1min": 1.9, "cpus": 2}, False),
        ({"load_1min": 6.0, "cpus": 2}, True),
        ({"load_1min": 6.0, "cpus": 16}, False),
        ({"cpus": 2}, False),
        ({"load_1min": 6.0, "cpus": None}, False),
    ],
)
def test_latencies_of_a_busy_machine_come_with_a_warning(conditions: dict[str, object], warned: bool) -> None:
    notes = busy(conditions)
    assert bool(notes) == warned
    assert all("load 6.0 on 2 processors" in note for note in notes)


@pytest.mark.parametrize(
    ("precision", "matched", "apart", "mean_precision", "warned"),
    [
        ("fp32", 1.0, 5e-4, 0.0, False),
        ("fp32", 1.0, 2e-3, 0.0, True),
        ("fp32", 0.99, 0.0, 0.0, True),
        ("fp16", 0.99, 0.5, -0.001, False),
        ("fp16", 1.0, 0.1, -0.003, True),
    ],
)
def test_an_engine_that_leaves_torch_comes_with_a_warning(
    precision: Precision, matched: float, apart: float, mean_precision: float, warned: bool
) -> None:
    engine = Engine(variant="x", backend="onnxruntime", precision=precision, bundle_step="engines")
    boxes = BoxParity(
        frames=1, boxes=9, matched=matched, max_difference=apart, max_score_difference=0, mAP_difference=mean_precision
    )
    assert bool(drift(engine, boxes, ParityRecipe())) == warned
