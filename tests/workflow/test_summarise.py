"""What a summary warns of."""

from __future__ import annotations

import pytest

from altermoma.calib.search import Found
from altermoma.calib.sensitivity import GroupHarm
from altermoma.recipe import ParityRecipe, Precision
from altermoma.report.summary import BoxParity
from altermoma.workflow.calibrate import SEARCH
from altermoma.workflow.plan import Engine
from altermoma.workflow.summarise import busy, drift, int8_notes


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


def test_the_report_tells_what_a_search_of_layer_groups_found() -> None:
    harms = [
        GroupHarm(group=f"fusion/{name}", macs=9, signal_db=20.0, alone=alone, regained=0.0)
        for name, alone in (("neck", 0.5), ("blocks", 0.1), ("fuser", 0.02), ("head", -0.04))
    ]
    groups = frozenset(harm.group for harm in harms[1:])
    found = Found(groups=groups, left_out=("fusion/neck",), map_fp32=0.8178, map_int8=0.8156, ranking=tuple(harms))
    shares = {"int8_macs": 0.957, "int8_macs_by_stage": {"fusion": 0.9}}
    record = {**shares, "signal_db": {"tensorrt": {"fusion": {"bev": 20.6, "rest": 30.0}}}}
    assert int8_notes({"fp32": {}}) == ()
    (plain,) = int8_notes({"int8": record})
    assert "96% of the multiply-adds (fusion 90%)" in plain
    assert "fusion 21 dB" in plain
    notes = int8_notes({"int8": record | {SEARCH: found.to_dict()}})
    assert notes[0] == plain
    assert "mAP 81.78 in fp32, 81.56 in int8" in notes[1]
    assert "left out: fusion/neck; the most harmful, alone in int8: fusion/neck -0.50, fusion/blocks -0.10" in notes[1]
    assert "fusion/head" not in notes[1]
