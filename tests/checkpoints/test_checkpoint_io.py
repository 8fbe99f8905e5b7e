"""Checkpoints: round trip, and every way in which a file can be the wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from altermoma.checkpoints.io import FORMAT, bundled_checkpoint, load_checkpoint, model_from_checkpoint, save_checkpoint
from altermoma.errors import CheckpointError
from altermoma.models.presets import build


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_checkpoint(path, build("bevfusion-tiny").state_dict(), {"preset": "bevfusion-tiny", "note": {"mAP": 0.5}})
    return path


def test_round_trip_is_exact(saved: Path) -> None:
    torch.manual_seed(0)
    expected = build("bevfusion-tiny").state_dict()
    state, metadata = load_checkpoint(saved)
    assert metadata == {"preset": "bevfusion-tiny", "note": {"mAP": 0.5}}
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert not model_from_checkpoint(saved, preset="bevfusion-tiny").training


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_cut_file_is_refused(saved: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_checkpoint(cut)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "missing.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="format None"):
        load_checkpoint(foreign)
    pickled = tmp_path / "epoch_20.pth"
    torch.save({"state_dict": {}}, pickled)
    with pytest.raises(CheckpointError, match="pickled checkpoint"):
        load_checkpoint(pickled)


def test_weights_that_are_not_finite_are_refused(saved: Path, tmp_path: Path) -> None:
    state, metadata = load_checkpoint(saved)
    state["img_backbone.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_checkpoint(tmp_path / "nan.safetensors", state, metadata)
    with pytest.raises(CheckpointError, match=r"img_backbone\.conv1\.weight holds NaN"):
        load_checkpoint(tmp_path / "nan.safetensors")


def test_another_preset_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a bevfusion-tiny"):
        model_from_checkpoint(saved, preset="bevfusion-mit-r101-second")
    with pytest.raises(CheckpointError, match="names no preset"):
        save_checkpoint(saved.with_name("x.safetensors"), {}, {})


def test_weights_of_no_preset_are_refused(tmp_path: Path) -> None:
    for metadata in ("{}", "[]", "cut {"):
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"format": FORMAT, "metadata": metadata})
        with pytest.raises(CheckpointError, match="which preset") as caught:
            load_checkpoint(tmp_path / "a.safetensors")
        assert caught.value.remedy


def test_half_precision_weights_are_told_from_other_widths(saved: Path, tmp_path: Path) -> None:
    state, metadata = load_checkpoint(saved)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_checkpoint(tmp_path / "half.safetensors", half, metadata)
    with pytest.raises(CheckpointError, match="in float16") as caught:
        model_from_checkpoint(tmp_path / "half.safetensors")
    assert "in float32" in caught.value.expected


def test_a_preset_without_weights_says_so() -> None:
    with pytest.raises(CheckpointError, match="no checkpoint ships"):
        bundled_checkpoint("bevfusion-huge")
