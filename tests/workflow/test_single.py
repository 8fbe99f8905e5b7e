"""Commands of their own: killed with SIGKILL while they work and given again, they leave what they would have left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from altermoma.checkpoints.io import load_checkpoint, save_checkpoint
from altermoma.data.synth import write_world
from altermoma.deploy.bundle import Bundle
from altermoma.models.presets import build
from altermoma.recipe import DataRecipe, Recipe
from altermoma.workflow.single import UNFINISHED, with_data_of

RECIPE = """
[prune]
score_batches = 2
reactivation_batches = 2
reri_batches = 2
[export]
fp32_tolerance = 1.0
fp32_frame_tolerance = 1.0
fp16_tolerance = 1.0
fp16_frame_tolerance = 1.0
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of two scenes, random weights and a recipe."""
    folder = tmp_path_factory.mktemp("single")
    write_world(folder / "world", names=("scene-0061", "scene-0103"), keyframes=12, jobs=1)
    torch.manual_seed(0)
    save_checkpoint(folder / "random.safetensors", build("bevfusion-tiny").state_dict(), {"preset": "bevfusion-tiny"})
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command in a process of its own, with a cache of this test."""
    inputs = ["--recipe", "recipe.toml", "--data", "world", "--checkpoint", "random.safetensors"]

    def begin(verb: str, *options: str | Path, plain: bool = False) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            "from altermoma.cli.app import main; main()",
            verb,
            *(() if plain else inputs),
            *map(str, options),
        ]
        environment = {**os.environ, "ALTERMOMA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    return begin


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, said = process.communicate()
    assert process.returncode == 0, said
    return out, said


def kill_at(process: subprocess.Popen[str], cache: Path, marker: str) -> None:
    """Kills the process once a file of its unfinished work is there."""
    while not list((cache / UNFINISHED).glob(marker)):
        assert process.poll() is None, f"ended before {marker}: {process.communicate()}"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_evaluation(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    whole, said = finish(start("eval"))
    assert "12 frames" in whole
    assert "continuing" not in said
    kill_at(start("eval"), tmp_path / "cache", "eval-*/eval/detections.parts/00000000.npz")
    again, said = finish(start("eval"))
    assert "continuing" in said
    assert again == whole
    assert not list((tmp_path / "cache" / UNFINISHED).iterdir())


def test_pruning(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    finish(start("prune", "--out", tmp_path / "whole.safetensors"))
    for marker in ("deci", "reactivated-lidar", "reri-camera"):
        process = start("prune", "--out", tmp_path / "killed.safetensors")
        kill_at(process, tmp_path / "cache", f"prune-*/prune/scores/{marker}.safetensors")
        assert not (tmp_path / "killed.safetensors").exists()
    _, said = finish(start("prune", "--out", tmp_path / "killed.safetensors"))
    assert "continuing" in said
    weights, record = load_checkpoint(tmp_path / "whole.safetensors")
    again, record_again = load_checkpoint(tmp_path / "killed.safetensors")
    assert record_again == record
    assert [name for name in weights if not torch.equal(weights[name], again[name])] == []


def test_export(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    finish(start("export", "--out", tmp_path / "whole"))
    kill_at(start("export", "--out", tmp_path / "killed"), tmp_path / "cache", "export-*/export/started.json")
    assert not (tmp_path / "killed").exists()
    finish(start("export", "--out", tmp_path / "killed"))
    whole, killed = Bundle.open(tmp_path / "whole").manifest, Bundle.open(tmp_path / "killed").manifest
    graphs = [name for name in whole.files if name.endswith(".onnx")]
    assert len(graphs) == 10
    assert [killed.files[name].sha256 for name in graphs] == [whole.files[name].sha256 for name in graphs]


def test_a_bundle_of_another_model_is_scored_as_its_checkpoint_is(
    start: Callable[..., subprocess.Popen[str]], folder: Path, tmp_path: Path
) -> None:
    """Frames are prepared for the bundle's model, and merged from as many sweeps as it was made with."""
    torch.manual_seed(0)
    pillars, weights = "bevfusion-tiny-pillars", tmp_path / "pillars.safetensors"
    save_checkpoint(weights, build(pillars).state_dict(), {"preset": pillars})
    recipe = tmp_path / "pillars.toml"
    recipe.write_text(f'model = "{pillars}"\n[data]\nsweeps = 1\n{RECIPE}')
    of_pillars = ["--recipe", recipe, "--checkpoint", weights]
    finish(start("export", *of_pillars, "--engine", "fp32", "--out", tmp_path / "bundle"))
    whole, _ = finish(start("eval", *of_pillars))
    assert with_data_of(Recipe(), tmp_path / "bundle").data == DataRecipe(root="world", sweeps=1)
    elsewhere = Recipe(data=DataRecipe(root="elsewhere"))
    assert with_data_of(elsewhere, tmp_path / "bundle").data == DataRecipe(root="elsewhere", sweeps=1)
    again, _ = finish(start("eval", "--bundle", tmp_path / "bundle", plain=True))
    assert again.splitlines()[0].split("NDS")[1] == whole.splitlines()[0].split("NDS")[1]
