"""scripts/gpu_train_check.py: what it finds is kept, and one check that fails does not end the others."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from script_module import load_script
from torch import nn

from altermoma.data.nuscenes import NuScenesReader
from altermoma.frames import Boxes
from altermoma.models.presets import config_of
from altermoma.ops.images import resize_crop


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("gpu_train_check")


def test_every_check_is_done_once_and_failures_are_results(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def fine() -> dict[str, object]:
        called.append("fine")
        return {"passed": True, "steps_per_s": 2.0}

    def broken() -> dict[str, object]:
        called.append("broken")
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(script, "checks_of", lambda _: {"broken": broken, "fine": fine})
    subject = SimpleNamespace(name="model", device=torch.device("cpu"))
    first = script.run_checks([subject], tmp_path)
    assert first == script.run_checks([subject], tmp_path)
    assert called == ["broken", "fine"]
    text = (tmp_path / "result.md").read_text()
    assert "| fine | yes | steps_per_s 2 |" in text
    assert "| broken | **no** | RuntimeError: out of memory |" in text


def test_frames_are_large_enough_for_presets_at_the_papers_scale(script: ModuleType, tmp_path: Path) -> None:
    script.write_world(tmp_path / "world", names=["scene-0061"], keyframes=1, jobs=1)
    small = NuScenesReader(tmp_path / "world", "v1.0-mini")
    (token,) = small.tokens("mini_train")
    frame, large = small.read(token), script.LargeReader(tmp_path / "world", "v1.0-mini").read(token)
    geometry = config_of("bevfusion-mit-r50-second").geometry
    assert resize_crop(large.images_vhw3, geometry.image).shape == (6, 256, 704, 3)
    # A point of the scene is at the same place of the picture.
    point = np.array([1.0, -0.5, 12.0])
    for before, after in zip(frame.calibration.intrinsics_v33, large.calibration.intrinsics_v33, strict=True):
        place, larger = before @ point, after @ point
        np.testing.assert_allclose(larger[:2] / larger[2] / 2.5, place[:2] / place[2])


def test_when_the_time_is_over_what_is_under_way_is_left_for_the_next_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a check that had a whole run to itself: it would stand in the way of those behind it for ever."""
    slow = 30.0

    def wait() -> dict[str, object]:
        time.sleep(slow)
        return {"passed": True}

    monkeypatch.setattr(script, "checks_of", lambda _: {"fine": lambda: {"passed": True}, "slow": wait, "last": wait})
    subject = SimpleNamespace(name="model", device=torch.device("cpu"))
    started = time.monotonic()
    assert set(script.run_checks([subject], tmp_path, 1.0)["model"]) == {"fine"}
    second = script.run_checks([subject], tmp_path, 1.0)["model"]
    assert time.monotonic() - started < slow
    assert second["slow"] == {"passed": False, "error": "not finished in 1 s, all of a run"}
    slow = 0.0
    assert script.run_checks([subject], tmp_path, 60.0)["model"]["last"]["passed"]


def test_what_the_cpu_answers_is_computed_once_and_beforehand(script: ModuleType, tmp_path: Path) -> None:
    boxes = {
        token: Boxes(
            geometry_m9=np.full((count, 9), count, np.float32),
            labels_m=np.arange(count),
            scores_m=np.full(count, 0.5, np.float32),
        )
        for token, count in (("first", 2), ("none", 0))
    }
    asked: list[torch.device] = []

    def make(device: torch.device) -> dict[str, torch.Tensor]:
        asked.append(device)
        names = ("geometry_m9", "labels_m", "scores_m")
        return {f"{token} {name}": torch.from_numpy(getattr(b, name)) for token, b in boxes.items() for name in names}

    subject = SimpleNamespace(answers=tmp_path / "cpu" / "model")
    first, again = (script.kept(subject, "detections", make) for _ in range(2))
    assert asked == [torch.device("cpu")]
    assert first[script.SECONDS] == again[script.SECONDS] >= 0
    found = script.unpacked(again)
    assert set(found) == {"first", "none"}
    for token, wanted in boxes.items():
        for name in ("geometry_m9", "labels_m", "scores_m"):
            np.testing.assert_array_equal(getattr(found[token], name), getattr(wanted, name))


def test_distances(script: ModuleType) -> None:
    assert script.difference(torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0])) == pytest.approx(0.125)
    start, one, other = (nn.Linear(1, 1, bias=False) for _ in range(3))
    for layer, value in ((start, 1.0), (one, 3.0), (other, 2.5)):
        nn.init.constant_(layer.weight, value)
    assert script.moved_apart(start, one, other) == pytest.approx(0.25)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_everything_agrees_on_a_gpu(script: ModuleType, tmp_path: Path) -> None:
    script.write_world(tmp_path / "world", names=script.SCENES, keyframes=3)
    device = script.choose_device("cuda")
    subject = script.subject_of("bevfusion-tiny", tmp_path, device, steps=6, workers=2)
    for name, record in script.run_checks([subject], tmp_path)["bevfusion-tiny"].items():
        assert record["passed"], (name, record)
