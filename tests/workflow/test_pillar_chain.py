"""Pillars through the whole chain with random weights: pruning, fine-tuning, export, bundle, ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from altermoma.checkpoints.io import save_checkpoint
from altermoma.deploy import Pipeline
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.pipeline import NO_POINTS
from altermoma.deploy.self_check import check_bundle
from altermoma.models.presets import build
from altermoma.recipe import BenchRecipe, DataRecipe, ExportRecipe, PruneRecipe, Recipe, TrainRecipe
from altermoma.workflow.oneshot import run

pytestmark = pytest.mark.slow

PRESET = "bevfusion-tiny-pillars"


@pytest.fixture(scope="module")
def finished(tiny_nuscenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pillars")
    torch.manual_seed(0)
    save_checkpoint(folder / "random.safetensors", build(PRESET).state_dict(), {"preset": PRESET})
    recipe = Recipe(
        name="pillars",
        model=PRESET,
        checkpoint=str(folder / "random.safetensors"),
        data=DataRecipe(root=str(tiny_nuscenes)),
        prune=PruneRecipe(score_batches=1, reactivation_batches=1),
        finetune=TrainRecipe(steps=1),
        # Random weights give near ties among the proposals, so that tolerances on the head say nothing here.
        export=ExportRecipe(fp32_tolerance=1.0, fp32_frame_tolerance=1.0, fp16_tolerance=1.0, fp16_frame_tolerance=1.0),
        bench=BenchRecipe(frames=1, rounds=1, warmup=0),
    )
    run(recipe, folder / "run")
    return folder / "run"


def test_the_lidar_branch_shrinks(finished: Path) -> None:
    bundle = Bundle.open(finished / "bundle")
    kept = bundle.manifest.widths["kept"]
    dense = {"pts_voxel_encoder.pfn_layers.0.linear": 16, "pts_voxel_encoder.pfn_layers.1.linear": 32}
    assert {name: width for name, width in kept.items() if name in dense}.keys() == dense.keys()
    assert any(kept[name] < width for name, width in dense.items())
    assert bundle.manifest.geometry == build(PRESET).config.geometry
    close = [c for c in check_bundle(bundle).tensors if c.precision == "fp32" and c.stage != "head"]
    assert {"lidar_bev", "camera_bev", "bev"} <= {c.tensor for c in close}
    assert max(c.difference for c in close) < 1e-4


def test_the_bundle_answers_a_crowded_and_an_empty_cloud(finished: Path) -> None:
    bundle = Bundle.open(finished / "bundle")
    reference = bundle.reference()
    pipeline = Pipeline.from_bundle(bundle, precision="fp32")
    empty = pipeline(reference.images_vhw3, np.zeros((0, 5), np.float32), reference.calibration)
    assert empty.warnings == (NO_POINTS,)
    low, high = (-31, -31, -2, 0, 0), (31, 31, 2, 255, 0.4)
    crowd = np.random.default_rng(0).uniform(low, high, (40000, 5)).astype(np.float32)
    crowded = pipeline(reference.images_vhw3, crowd, reference.calibration)
    assert len(crowded.warnings) == 1
    assert "pillars beyond the model's 8000 were dropped" in crowded.warnings[0]
    assert len(crowded.boxes) > 0
