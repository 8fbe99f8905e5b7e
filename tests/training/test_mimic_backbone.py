"""scripts/mimic_backbone.py: a student's camera learns the teacher's maps, and the rest is the teacher's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from script_module import load_script

from altermoma.checkpoints.io import load_checkpoint, save_checkpoint
from altermoma.data.augment import Augment
from altermoma.data.dataset import FrameDataset
from altermoma.data.nuscenes import NuScenesReader
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build

CAMERA = ("img_backbone.", "img_neck.")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("mimic_backbone")


@pytest.fixture(scope="module")
def teacher() -> FusionModel:
    torch.manual_seed(3)
    return build("bevfusion-tiny").eval()


def test_the_objective_is_the_squared_error_in_the_teachers_variance(
    script: ModuleType, teacher: FusionModel, tiny_nuscenes: Path
) -> None:
    reader = NuScenesReader(tiny_nuscenes, "v1.0-mini", 2)
    frames = FrameDataset(reader, reader.tokens("mini_train"), teacher.config.geometry, Augment(), cache_mib=0)
    sample = frames[0]
    student = build("bevfusion-tiny").eval()
    with torch.no_grad():
        images = torch.as_tensor(sample.inputs["images"])
        wanted, given = (script.neck_maps(model, images).double().numpy() for model in (teacher, student))
        found = script.Mimicry(teacher)(student, [sample]).total
        none = script.Mimicry(teacher)(teacher, [sample]).total
    assert float(found) == pytest.approx(np.mean((given - wanted) ** 2) / np.var(wanted, ddof=1), rel=1e-4)
    assert float(none) == 0.0


def test_only_the_students_backbone_and_neck_learn(script: ModuleType, teacher: FusionModel) -> None:
    student = build("bevfusion-tiny-swin")
    script.take_over(student, teacher)
    learning = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in student.named_parameters() if name.startswith(CAMERA)}
    theirs = teacher.state_dict()
    taken = [name for name in student.state_dict() if not name.startswith(CAMERA)]
    assert taken
    assert all(torch.equal(student.state_dict()[name], theirs[name]) for name in taken)


def test_a_run_writes_a_checkpoint_with_the_teachers_rest(
    script: ModuleType, teacher: FusionModel, tiny_nuscenes: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "teacher.safetensors", teacher.state_dict(), {"preset": "bevfusion-tiny"})
    asked = {"world": tiny_nuscenes, "teacher": tmp_path / "teacher.safetensors", "out": tmp_path / "out"}
    script.main(**asked, preset="bevfusion-tiny-swin", train_split="mini_train", steps=2, batch=1, threads=1)
    weights = load_checkpoint(tmp_path / "out" / "model.safetensors")[0]
    fresh = build("bevfusion-tiny-swin")
    fresh.load_state_dict(weights)
    for name, tensor in teacher.state_dict().items():
        if not name.startswith(CAMERA) and "running" not in name and "batches" not in name:
            assert torch.equal(weights[name], tensor), name
