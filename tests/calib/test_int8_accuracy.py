"""What `scripts/int8_accuracy.py` keeps, asks for and pairs: not what another input, recipe or order has left."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from script_module import load_script

from altermoma.calib.settings import CalibrationSettings, StageMethods
from altermoma.recipe import DataRecipe

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "int8_accuracy.py"
RECIPE = 'schema = 1\ndataset = "mine"\nkeep = ["{keep}"]\npercentile = {percentile}\n'


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("int8_accuracy")


def recipe(path: Path, keep: str = "^head", percentile: float = 99.99) -> str:
    path.write_text(RECIPE.format(keep=keep, percentile=percentile))
    return str(path)


def world(root: Path, table: str = "[]") -> str:
    folder = root / DataRecipe().version
    folder.mkdir(parents=True)
    (folder / "sample.json").write_text(table)
    return str(root)


def bundle(folder: Path, manifest: str = "{}") -> Any:
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest)
    return SimpleNamespace(folder=folder, manifest=SimpleNamespace(recipe={"model": "bevfusion-tiny"}))


def test_whatever_decides_a_result_has_a_folder_of_its_own(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = {
        "work": tmp_path / "work",
        "data": world(tmp_path / "data"),
        "data_split": "synth_train",
        "validation": world(tmp_path / "unseen"),
        "split": "synth_train",
        "recipe": recipe(tmp_path / "a.toml"),
    }
    exported, other = bundle(tmp_path / "bundle"), bundle(tmp_path / "again", '{"name": "exported again"}')
    changes = {
        "data": world(tmp_path / "more", "[1]"),
        "data_split": "synth_val",
        "validation": world(tmp_path / "other", "[2]"),
        "split": "synth_val",
        "recipe": recipe(tmp_path / "b.toml", keep="^camera"),
    }
    every = [{**asked, name: value} for name, value in changes.items()]
    every.append({**asked, "recipe": recipe(tmp_path / "c.toml", percentile=99.9)})
    folders = [script.work_of(argparse.Namespace(**each), exported) for each in (asked, *every)]
    folders.append(script.work_of(argparse.Namespace(**asked), other))
    assert len(set(folders)) == len(folders)
    assert folders[0].parent == tmp_path / "work"
    moved = {**asked, "data": world(tmp_path / "moved"), "recipe": recipe(tmp_path / "d.toml")}
    assert script.work_of(argparse.Namespace(**moved), exported) == folders[0]
    changed = tmp_path / "int8_accuracy.py"
    changed.write_text(SCRIPT.read_text() + "# scores something else\n")
    monkeypatch.setattr(script, "__file__", str(changed))
    assert script.work_of(argparse.Namespace(**asked), exported) not in folders


def test_a_method_asked_for_goes_before_those_of_the_recipe(script: ModuleType) -> None:
    settings = CalibrationSettings(methods=StageMethods(lidar="mse"))
    assert script.settings_of(settings, "recipe") == settings
    found = script.settings_of(settings, "percentile:99.9")
    assert {found.method_of(stage) for stage in ("camera", "lidar")} == {"percentile"}
    assert found.percentile == 99.9


def test_scenes_follow_the_tokens_of_the_matches(script: ModuleType) -> None:
    samples = {token: SimpleNamespace(scene=f"scene of {token}") for token in "abc"}
    reader = SimpleNamespace(tables=SimpleNamespace(samples=samples))
    assert script.scenes_of(reader, ("c", "a", "b")) == ["scene of c", "scene of a", "scene of b"]


class Frames:
    """Frames that count how often each was prepared."""

    geometry = None

    def __init__(self, tokens: str) -> None:
        self.tokens, self.prepared = tokens, [0] * len(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> SimpleNamespace:
        self.prepared[index] += 1
        return SimpleNamespace(token=self.tokens[index], inputs={"frame": index})


def test_a_frame_is_prepared_once_and_a_killed_run_goes_on_inside_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "decode", lambda made, _: [made])
    runs = {"fp32": lambda inputs: inputs["frame"], "mse tensorrt": lambda inputs: 10 + inputs["frame"]}
    whole = list(script.detected(runs, frames := Frames("abc"), 0))
    assert whole == [
        ("fp32/a", 0), ("mse tensorrt/a", 10),
        ("fp32/b", 1), ("mse tensorrt/b", 11),
        ("fp32/c", 2), ("mse tensorrt/c", 12),
    ]  # fmt: skip
    assert frames.prepared == [1, 1, 1]
    for start in range(len(whole) + 1):
        assert list(script.detected(runs, frames := Frames("abc"), start)) == whole[start:]
        assert sum(frames.prepared) == 3 - start // 2


def test_all_methods_or_those_named_are_scored_for_onnxruntime(script: ModuleType) -> None:
    everywhere, some = argparse.Namespace(onnxruntime=""), argparse.Namespace(onnxruntime="mse,minmax")
    assert list(script.dialects_of(everywhere, "entropy")) == ["tensorrt", "onnxruntime"]
    assert list(script.dialects_of(some, "minmax")) == ["tensorrt", "onnxruntime"]
    assert list(script.dialects_of(some, "entropy")) == ["tensorrt"]
