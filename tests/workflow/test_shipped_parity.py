"""The shipped checkpoint at the recipe's own tolerances: what random weights cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest

from altermoma.data.dataset import FrameDataset
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.pipeline import Pipeline
from altermoma.evaluation.predict import predict, predict_with
from altermoma.recipe import Recipe
from altermoma.workflow.accuracy import compare, rounded_pipeline
from altermoma.workflow.graphs import export_bundle
from altermoma.workflow.place import Workplace


@pytest.mark.slow
def test_engines_find_torchs_boxes(tmp_path: Path) -> None:
    place = Workplace(Recipe())
    model = place.dense_model()
    export_bundle(place, model, ("fp32", "fp16"), tmp_path / "bundle", {})
    frames = FrameDataset(place.reader, place.val.tokens[::8], place.geometry)
    torch_boxes = predict(model, frames)
    exact = compare(
        torch_boxes, predict_with(Pipeline.from_bundle(tmp_path / "bundle", precision="fp32").run_stages, frames)
    )
    assert exact.boxes > 50
    assert exact.matched == 1.0
    assert exact.max_difference < 1e-3
    assert exact.max_score_difference < 1e-3
    rounded = compare(
        torch_boxes, predict_with(rounded_pipeline(Bundle.open(tmp_path / "bundle"), "fp16", 1).run_stages, frames)
    )
    assert rounded.matched > 0.98
    # Written-out roundings must show: an fp16 that equals fp32 would not have been computed in halves.
    assert 1e-4 < rounded.max_score_difference < 0.05
