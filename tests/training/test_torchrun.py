"""torchrun on the command line, as the documents have it: one result, written and named once."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from altermoma import recipe as recipes
from altermoma.checkpoints.io import load_checkpoint
from altermoma.training.log import read_log

REPO = Path(__file__).resolve().parents[2]
DOCUMENT = (REPO / "docs" / "training.md").read_text(encoding="utf-8")
RECIPE = """
[data]
val_split = "mini_val"
[finetune]
steps = 2
batch_size = 2
checkpoint_every = 1
"""


def launched(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(words, cwd=folder, env=environment, text=True, capture_output=True, timeout=120, check=False)


def documented(data: Path, out: str, recipe: str) -> list[str]:
    """The document's torchrun line for other data."""
    (line,) = re.findall(r"^torchrun .*$", DOCUMENT, flags=re.MULTILINE)
    words = shlex.split(line)
    words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    changed = {"--data": str(data), "--out": out}
    for option, value in changed.items():
        words[words.index(option) + 1] = value
    at = words.index("--checkpoint")
    return [*words[:at], *words[at + 2 :], "--recipe", recipe, "--device", "cpu"]


def test_the_recipe_of_the_document_loads() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    recipe = recipes.parse(text)
    assert recipe.compute.precision == "bf16"
    assert recipe.finetune.batch_size % recipe.compute.accumulate == 0


def test_two_processes_train_as_one(tiny_nuscenes: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    two = launched(tmp_path, documented(tiny_nuscenes, "two", "recipe.toml"))
    assert two.returncode == 0, two.stderr
    assert two.stdout.splitlines() == ["two/model.safetensors"]
    assert "process 1: computing on cpu" in two.stderr
    alone = [sys.executable, "-m", "altermoma.cli.app", "train", "--data", str(tiny_nuscenes), "--out", "one"]
    one = launched(tmp_path, [*alone, "--recipe", "recipe.toml", "--device", "cpu"])
    assert one.returncode == 0, one.stderr
    logs = [read_log(tmp_path / name / "training_log.jsonl") for name in ("one", "two")]
    assert [len(log) for log in logs] == [2, 2]
    for key in ("total", "heatmap", "classes", "boxes", "depth", "matched", "grad_norm"):
        assert logs[1][0][key] == pytest.approx(logs[0][0][key], rel=1e-3), key
    weights = [load_checkpoint(tmp_path / name / "model.safetensors")[0] for name in ("one", "two")]
    start = load_checkpoint(REPO / "altermoma" / "checkpoints" / "weights" / "bevfusion-tiny.safetensors")[0]
    name = "pts_backbone.blocks.0.0.weight"
    moved = [w[name] - start[name] for w in weights]
    assert torch.nn.functional.cosine_similarity(moved[0].flatten(), moved[1].flatten(), dim=0) > 0.99


def test_other_commands_work_in_one_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "WORLD_SIZE": "2", "RANK": "0"}
    words = [sys.executable, "-c", "from altermoma.cli.oneshot import main; main()", "--out", "run"]
    environment["ALTERMOMA_CACHE"] = str(tmp_path)
    found = subprocess.run(words, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert found.returncode == 2
    assert "2 processes of a command that works in one" in found.stderr


def test_a_teacher_needs_a_pruned_student(tiny_nuscenes: Path, tmp_path: Path) -> None:
    weights = REPO / "altermoma" / "checkpoints" / "weights" / "bevfusion-tiny.safetensors"
    words = ["train", "--data", str(tiny_nuscenes), "--out", "run", "--device", "cpu", "--teacher", str(weights)]
    found = launched(tmp_path, [sys.executable, "-m", "altermoma.cli.app", *words])
    assert found.returncode == 1
    assert "does not say which channels" in found.stderr
