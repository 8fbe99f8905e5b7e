"""The checkpoint that ships: small, documented, and as good as it says on freshly made data."""

from __future__ import annotations

import json

import pytest

from altermoma.checkpoints.io import bundled_checkpoint, load_checkpoint, model_from_checkpoint
from altermoma.data.dataset import FrameDataset
from altermoma.data.nuscenes import NuScenesReader
from altermoma.data.synth import cached_world
from altermoma.evaluation.nuscenes_eval import evaluate
from altermoma.evaluation.predict import predict
from altermoma.recipe import DataRecipe

PRESET = "bevfusion-tiny"


def test_it_is_small_and_its_log_tells_how_it_was_made() -> None:
    path = bundled_checkpoint(PRESET)
    assert path.stat().st_size <= 6_000_000
    _, record = load_checkpoint(path)
    log = json.loads(path.with_suffix(".json").read_text())
    assert record["preset"] == PRESET
    assert log["recipe"] == record["recipe"]
    assert log["metrics"] == record["metrics"]
    assert len(log["log"]) >= 50


@pytest.mark.slow
def test_its_accuracy_holds_on_the_default_world() -> None:
    _, record = load_checkpoint(bundled_checkpoint(PRESET))
    data = DataRecipe()
    reader = NuScenesReader(cached_world(data.synth_scenes, data.synth_seed), data.version, data.sweeps)
    model = model_from_checkpoint(bundled_checkpoint(PRESET))
    validation = FrameDataset(reader, reader.tokens(data.val_split), model.config.geometry)
    metrics = evaluate(reader, data.val_split, predict(model, validation))
    assert metrics.mAP >= 0.5
    assert metrics.mAP == pytest.approx(record["metrics"]["mAP"], abs=0.005)
