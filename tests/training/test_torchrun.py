"""torchrun on the command line, as the documents have it: one result, written and named once."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
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


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def launched(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env=ENVIRONMENT, text=True, capture_output=True, timeout=120, check=False)


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


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_weights(tiny_nuscenes: Path, tmp_path: Path) -> None:
    """SIGKILL to torchrun and all that it started, in bf16, in two parts, with reading processes."""
    recipe = RECIPE.replace("batch_size = 2", "batch_size = 4").replace("steps = 2", "steps = 5")
    compute = '[compute]\nprecision = "bf16"\naccumulate = 2\nworkers = 1\n'
    (tmp_path / "recipe.toml").write_text(recipe + compute)
    whole = launched(tmp_path, documented(tiny_nuscenes, "whole", "recipe.toml"))
    assert whole.returncode == 0, whole.stderr
    words, log = documented(tiny_nuscenes, "cut", "recipe.toml"), tmp_path / "cut" / "training_log.jsonl"
    with subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True) as process:
        while len(read_log(log)) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        for member in reversed(descendants(process.pid)):
            os.kill(member, signal.SIGKILL)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = launched(tmp_path, words)
    assert resumed.returncode == 0, resumed.stderr
    weights = [load_checkpoint(tmp_path / name / "model.safetensors")[0] for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [line["step"] for line in read_log(log)] == list(range(5))


def descendants(parent: int) -> list[int]:
    """The process and all that it started; torchrun's children lead sessions of their own."""
    found = [parent]
    for number in found:
        for task in Path(f"/proc/{number}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


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
