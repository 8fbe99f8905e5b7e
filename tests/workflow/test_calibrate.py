"""Calibration as a step: which frames it takes, and range files that it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

from altermoma.calib.frames import FrameManifest, choose_frames, write_manifest
from altermoma.calib.ranges import Ranges
from altermoma.calib.scales import Range
from altermoma.calib.settings import CalibrationSettings, StageMethods
from altermoma.errors import DataError, RecipeError
from altermoma.export.export_model import ExportResult
from altermoma.recipe import CalibrationRecipe, DataRecipe, Recipe
from altermoma.workflow.calibrate import calibration_inputs, frames_of, known_ranges
from altermoma.workflow.place import Workplace


def recipe(root: Path, **calibration: str) -> Recipe:
    return Recipe(data=DataRecipe(root=str(root)), calibration=CalibrationRecipe(**calibration))  # type: ignore[arg-type]


def some_frames(root: Path) -> tuple[Workplace, FrameManifest]:
    place = Workplace(recipe(root))
    tokens = place.reader.tokens(place.recipe.data.train_split)
    frames = choose_frames(place.reader, tokens, place.geometry, count=2, pool=2)
    return place, FrameManifest(version="v1.0-mini", split="mini_train", sweeps=3, frames=frames)


def export(key: str) -> ExportResult:
    graph = onnx.ModelProto()
    graph.metadata_props.add(key="content_key", value=key)
    return ExportResult(
        precision="fp32", trt_version="10.3", stages={"camera": graph}, records={}, findings=[], parity=[], inputs={},
        reference={},
    )  # fmt: skip


def test_frames_are_chosen_once_and_those_of_a_manifest_are_taken(tiny_nuscenes: Path, tmp_path: Path) -> None:
    place, manifest = some_frames(tiny_nuscenes)
    settings = CalibrationSettings(frames=2, pool=2)
    found = frames_of(place, place.geometry, tmp_path, settings)
    assert found.tokens == manifest.tokens
    assert (tmp_path / "frames.json").is_file()
    named = Workplace(recipe(tiny_nuscenes, manifest=str(tmp_path / "frames.json")))
    assert frames_of(named, place.geometry, tmp_path / "other", settings) == found
    assert not (tmp_path / "other").exists()


def test_a_manifest_of_another_data_set_is_an_error(tiny_nuscenes: Path, tmp_path: Path) -> None:
    place, manifest = some_frames(tiny_nuscenes)
    foreign = dataclasses.replace(manifest.frames[0], token="0" * 32)
    write_manifest(tmp_path / "frames.json", dataclasses.replace(manifest, frames=(foreign,)))
    named = Workplace(recipe(tiny_nuscenes, manifest=str(tmp_path / "frames.json")))
    with pytest.raises(DataError, match=r"names frame 0{32}, which v1\.0-mini does not have"):
        frames_of(named, place.geometry, tmp_path, CalibrationSettings())


def test_fewer_frames_than_the_recipe_wants_are_an_error(tiny_nuscenes: Path, tmp_path: Path) -> None:
    place, _ = some_frames(tiny_nuscenes)
    with pytest.raises(DataError, match="frames to calibrate with"):
        frames_of(place, place.geometry, tmp_path, CalibrationSettings(frames=10_000, pool=10_000))
    assert not list(tmp_path.iterdir())


def test_ranges_are_taken_only_for_the_model_the_cut_and_the_frames_they_are_of(
    tiny_nuscenes: Path, tmp_path: Path
) -> None:
    _, manifest = some_frames(tiny_nuscenes)
    settings = CalibrationSettings(frames=2, pool=2)
    ranges = Ranges(
        model="bevfusion-tiny",
        graphs={"camera": "a"},
        manifest=manifest.key,
        frames=2,
        settings=settings.to_dict(),
        tensors={"camera": {"x": Range(low=0.0, high=1.0)}},
    )
    file = tmp_path / "ranges.json"
    file.write_text(ranges.to_text(), encoding="utf-8")
    asked = recipe(tiny_nuscenes, manifest="frames.json", ranges=str(file))
    assert known_ranges(asked, export("a"), manifest, settings) == ranges
    with pytest.raises(DataError, match="stale: stage camera"):
        known_ranges(asked, export("b"), manifest, settings)
    with pytest.raises(DataError, match="of calibration frames"):
        known_ranges(asked, export("a"), dataclasses.replace(manifest, frames=manifest.frames[:1]), settings)
    with pytest.raises(DataError, match="of model bevfusion-tiny"):
        known_ranges(dataclasses.replace(asked, model="other"), export("a"), manifest, settings)
    with pytest.raises(RecipeError, match=r"without calibration\.manifest"):
        known_ranges(recipe(tiny_nuscenes, ranges=str(file)), export("a"), manifest, settings)
    kept = dataclasses.replace(settings, keep=("head",))
    assert known_ranges(asked, export("a"), manifest, kept) == ranges
    for other in ({"number": "fp8"}, {"method": "mse"}, {"percentile": 99.0}, {"methods": StageMethods(head="mse")}):
        with pytest.raises(DataError, match=f"the ranges are of {next(iter(other))} = "):
            known_ranges(asked, export("a"), manifest, dataclasses.replace(settings, **other))
    file.unlink()
    with pytest.raises(DataError, match="cannot read ranges"):
        known_ranges(asked, export("a"), manifest, settings)


def test_what_decides_the_ranges_is_part_of_the_key(tiny_nuscenes: Path, tmp_path: Path) -> None:
    _, manifest = some_frames(tiny_nuscenes)
    write_manifest(tmp_path / "frames.json", manifest)
    plain = calibration_inputs(recipe(tiny_nuscenes))
    named = calibration_inputs(recipe(tiny_nuscenes, manifest=str(tmp_path / "frames.json")))
    assert plain != named
    assert json.dumps(named)
    with pytest.raises(RecipeError, match="no calibration recipe 'none'"):
        calibration_inputs(recipe(tiny_nuscenes, recipe="none"))
