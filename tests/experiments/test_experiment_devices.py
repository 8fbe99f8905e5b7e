"""Frames follow the model: they are read on the host, and torch's device for shapes stands for a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from synthetic_inputs import random_inputs
from torch import Tensor, nn

from altermoma.experiments import workbench
from altermoma.experiments.analysis import branch_map
from altermoma.experiments.recipe import ExperimentRecipe
from altermoma.models.batch import FrameBatch, collate
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import config_of
from altermoma.pruning.methods.prospr import _Task

GEOMETRY = config_of("bevfusion-tiny").geometry
FRAME = collate([random_inputs(GEOMETRY)], GEOMETRY)


class Elsewhere(nn.Module):
    """Has its weights on another device, and takes no frame from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device="meta"))

    def camera_branch(self, frame: FrameBatch) -> Tensor:
        return loss_there(self, frame).expand(1, 2, 3, 3)


def loss_there(_model: nn.Module, frame: FrameBatch, *_: Any) -> Tensor:
    assert {value.device.type for value in frame.tensors.values()} == {"meta"}
    return torch.ones(())


def test_prospr() -> None:
    assert float(_Task(Elsewhere(), loss_there)(FRAME, [])) == 1.0


def test_the_map_of_a_branch() -> None:
    assert branch_map(cast(FusionModel, Elsewhere()), "camera", FRAME).shape == (3, 3)


def test_the_loss_after_cutting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "task_loss", loss_there)
    bench = workbench.Workbench(ExperimentRecipe(title="T"), tmp_path)
    monkeypatch.setattr(bench, "_loss_batches", [(FRAME, [])], raising=False)
    assert bench.loss(cast(FusionModel, Elsewhere())) == 1.0


def test_the_device_of_the_command_is_that_of_the_cells() -> None:
    recipe = dataclasses.replace(ExperimentRecipe(title="T"), device="cpu")
    assert recipe.base().compute.device == "cpu"
