"""A small random frame and model for the export tests, made once."""

from __future__ import annotations

import functools

import numpy as np
import torch

from altermoma.export.export_model import ExportResult, export_model
from altermoma.frames import Calibration
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.ops.prepare import FramePreparer, StageInputs
from altermoma.recipe import ExportRecipe, Precision

PRESET = "bevfusion-tiny"


def surround_calibration(image_hw: tuple[int, int] = (360, 640)) -> Calibration:
    """Six cameras 1 m above the LiDAR, 60 degrees apart."""
    intrinsics = np.array([[506.0, 0, image_hw[1] / 2], [0, 506.0, image_hw[0] / 2], [0, 0, 1]])
    poses = np.tile(np.eye(4), (6, 1, 1))
    for i, angle in enumerate(np.arange(6) * np.pi / 3):
        forward, right = np.array([np.cos(angle), np.sin(angle), 0]), np.array([np.sin(angle), -np.cos(angle), 0])
        poses[i, :3, :3] = np.stack([right, [0, 0, -1], forward])
        poses[i, 1, 3] = 1.0
    return Calibration(
        camera_names=tuple("abcdef"),
        intrinsics_v33=np.tile(intrinsics, (6, 1, 1)),
        camera_from_lidar_v44=poses,
        image_hw=image_hw,
    )


def random_frame(points: int, seed: int = 0) -> StageInputs:
    """Graph inputs of a frame with noise images and `points` random returns."""
    rng = np.random.default_rng(seed)
    columns = [rng.uniform(low, high, points) for low, high in ((-32, 32), (-32, 32), (-3, 0), (0, 255), (0, 0.2))]
    images = rng.integers(0, 255, (6, 96, 256, 3)).astype(np.uint8)
    preparer = FramePreparer(ModelConfig().geometry)
    return preparer.prepare_parts(images, np.stack(columns, 1).astype(np.float32), surround_calibration())


def random_model(config: ModelConfig | None = None) -> FusionModel:
    """A model with random weights and random running statistics, so that a forgotten batch norm shows."""
    torch.manual_seed(0)
    model = FusionModel(config or ModelConfig())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.05)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.3)  # type: ignore[union-attr]
    # Scores apart from each other, so that no two proposals tie.
    torch.nn.init.normal_(model.bbox_head.heatmap_head[1].weight, std=0.05)  # type: ignore[arg-type, index]
    return model


@functools.cache
def exported(precision: Precision, trt_version: str = "10.3.0") -> ExportResult:
    return export_model(
        random_model(),
        random_frame(3000, seed=3),
        preset=PRESET,
        precision=precision,
        trt_version=trt_version,
        recipe=ExportRecipe(),
    )
