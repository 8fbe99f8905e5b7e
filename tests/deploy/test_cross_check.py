"""Two runtimes held against each other: polygraphy's verdict and ours."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cross_check import by_hand, by_polygraphy, cross_check, require_agreement
from altermoma.deploy.manifest import StageRecord
from altermoma.deploy.pipeline import open_stages
from altermoma.deploy.self_check import check_stage, reference_inputs
from altermoma.deploy.stage_io import Arrays, StageRunner
from altermoma.errors import EngineError

needs_polygraphy = pytest.mark.skipif(importlib.util.find_spec("polygraphy") is None, reason="no polygraphy")


class Altered:
    """A stage that gets one output wrong."""

    def __init__(self, stage: StageRunner, name: str, change: float, place: int = 0) -> None:
        self.record: StageRecord = stage.record
        self._stage, self._name, self._change, self._place = stage, name, change, place

    def run(self, inputs: Arrays) -> Arrays:
        outputs = dict(self._stage.run(inputs))
        wrong = outputs[self._name].copy()
        wrong.reshape(-1)[self._place] += np.asarray(self._change, wrong.dtype)
        return {**outputs, self._name: wrong}


@needs_polygraphy
@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    off=st.one_of(st.floats(0, 0.999), st.floats(1.001, 2), st.sampled_from([float("nan"), float("inf")])),
    seed=st.integers(0, 9),
)
def test_our_rule_is_polygraphys(scale: float, off: float, seed: int) -> None:
    want: NDArray[np.float64] = np.random.default_rng(seed).normal(size=(3, 4)) * scale
    got = want.copy()
    got[1, 2] += off * scale
    pairs, limits = {"out": (got, want)}, {"out": 1.0 * scale}
    assert by_polygraphy(pairs, limits) == by_hand(pairs, limits) == {"out": bool(np.isfinite(off) and off <= 1.0)}


@pytest.mark.parametrize("installed", [True, False])
def test_runtimes_that_agree_and_that_do_not(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if installed and importlib.util.find_spec("polygraphy") is None:
        pytest.skip("no polygraphy")
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    stages, reference = open_stages(bundle, "onnxruntime", "fp32", threads=1), bundle.reference()
    allowed = bundle.manifest.tolerances["fp32"]
    checks = cross_check("fp32", stages, stages, reference, allowed)
    assert {c.judge for c in checks} == {"polygraphy" if installed else "altermoma"}
    assert {(c.stage, c.tensor) for c in checks} == {
        (name, spec.name) for name, stage in stages.items() for spec in stage.record.outputs
    }
    require_agreement(checks)
    wrong = {**stages, "fusion": Altered(stages["fusion"], "bev", 0.01)}
    with pytest.raises(EngineError, match=r"fp32 fusion\.bev: off by 1\.\d+e-02, allowed 1e-04") as caught:
        require_agreement(cross_check("fp32", wrong, stages, reference, allowed))
    assert "debug-precision" in caught.value.remedy
    wrong = {**stages, "head": Altered(stages["head"], "heatmap", float("nan"))}
    with pytest.raises(EngineError, match=r"head\.heatmap: NaN or infinity"):
        require_agreement(cross_check("fp32", wrong, stages, reference, allowed))


def test_int8_is_held_to_noise_over_signal(bundle: Bundle) -> None:
    """Not to its single worst number: that may be far off alone, and all may be a little wrong."""
    stages, reference = open_stages(bundle, "onnxruntime", "fp32", threads=1), bundle.reference()
    true = stages["fusion"].run(reference_inputs(stages["fusion"].record, reference))["bev"].astype(np.float64)
    worst = 2.0 * np.abs(true).max()
    one = {**stages, "fusion": Altered(stages["fusion"], "bev", worst)}
    (found,) = [c for c in cross_check("int8", one, stages, reference, 0.7) if c.tensor == "bev"]
    assert found.difference == pytest.approx(worst / np.linalg.norm(true), rel=1e-5)
    assert found.judge == "altermoma"
    lost = {**stages, "head": Altered(stages["head"], "heatmap", float("nan"))}
    with pytest.raises(EngineError, match=r"head\.heatmap: NaN or infinity"):
        require_agreement(cross_check("int8", lost, stages, reference, 0.7))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("stage", "tensor"), [("camera", "depth_weights"), ("head", "query_scores"), ("head", "center")]
)
def test_what_is_not_finite_is_called_so(bundle: Bundle, stage: str, tensor: str, value: float) -> None:
    stages, reference = open_stages(bundle, "onnxruntime", "fp32", threads=1), bundle.reference()
    checks = check_stage("fp32", Altered(stages[stage], tensor, value), reference, 1e-4)
    (bad,) = [c for c in checks if not c.finite]
    assert not bad.passed
    assert str(bad) == f"fp32 {stage}.{tensor} holds NaN or infinity"
    assert not dataclasses.replace(bad, difference=0.0).passed
