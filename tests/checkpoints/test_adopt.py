"""Foreign checkpoints behind the commands: which preset they are, what is recorded, what recipes become."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from foreign_files import PRESET, as_mit, grid_of_tiny, tiny_model, write
from test_mmdet3d_folder import executed
from typer.testing import CliRunner

from altermoma.checkpoints import io
from altermoma.checkpoints.adopt import family_of, open_checkpoint
from altermoma.checkpoints.mmdet3d import read_config
from altermoma.checkpoints.mmdet3d.write import Written, write_mmdet3d
from altermoma.cli.app import app
from altermoma.cli.options import load_recipe
from altermoma.errors import CheckpointError, RecipeError, UnsupportedError
from altermoma.models.config import BevConfig, CameraConfig, LidarConfig, ResNetConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import PRESETS
from altermoma.models.record import from_record, to_record
from altermoma.recipe import PruneRecipe, TrainRecipe, load
from altermoma.workflow.place import Workplace

R50 = "bevfusion-mit-r50-second"
NARROW = dataclasses.replace(
    PRESETS[R50],
    backbone=ResNetConfig(stem=8, widths=(8, 16, 32, 64), blocks=(2, 2, 2, 2)),
    camera=CameraConfig(neck=16, depth_widths=(8, 32, 64), depthnet=16, channels=16, downsample=2),
    lidar=LidarConfig(base=8, stages=((8, 16), (16, 16), (16, 16), (16,)), channels=16),
    bev=BevConfig(fuser=16, widths=(16, 16), layers=(1, 1), strides=(1, 2), neck=(16, 16)),
)
"""A user's own training: nuScenes' grids, narrow layers."""


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """A folder of mmdet3d; its configuration has no `_base_`, so that Python reads it as mmengine would."""
    monkeypatch.setattr(read_config, "_load", executed)
    monkeypatch.setenv("ALTERMOMA_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    return write_mmdet3d(FusionModel(NARROW), tmp_path / "narrow", sweeps=7)


@pytest.mark.parametrize("name", [*PRESETS, "narrow"])
def test_configurations_survive_json(name: str) -> None:
    config = PRESETS.get(name, NARROW)
    assert from_record(json.loads(json.dumps(to_record(config)))) == config


def test_a_record_of_another_version_is_refused() -> None:
    record = to_record(NARROW)
    record["backbone"]["groups"] = 2
    with pytest.raises(CheckpointError, match=r"config\.backbone"):
        from_record(record)
    with pytest.raises(CheckpointError, match="version of altermoma"):
        from_record({"radar": {}})


def test_a_model_belongs_to_the_preset_of_its_interface() -> None:
    assert {name: family_of(config) for name, config in PRESETS.items()} == {name: name for name in PRESETS}
    assert family_of(NARROW) == R50
    geometry = dataclasses.replace(NARROW.geometry, depth_bins=(1.0, 60.0, 1.0))
    with pytest.raises(UnsupportedError, match=r"geometry\.depth_bins = "):
        family_of(dataclasses.replace(NARROW, geometry=geometry))
    more = dataclasses.replace(NARROW.geometry, max_voxels=200000)
    with pytest.raises(UnsupportedError, match=r"geometry\.max_voxels = 200000"):
        family_of(dataclasses.replace(NARROW, geometry=more))


def test_a_configuration_and_its_checkpoint_become_a_recipe_and_its_model(narrow: Written, tmp_path: Path) -> None:
    recipe = load_recipe(None, checkpoint=narrow.weights, mmdet3d_config=narrow.config)
    assert (recipe.name, recipe.model, recipe.data.sweeps, recipe.data.repeat_key) == (R50, R50, 7, True)
    assert Path(recipe.checkpoint).parent == tmp_path / "cache"
    place = Workplace(recipe)
    assert place.config == NARROW
    assert place.geometry.image.resize == 0.48
    wanted = torch.load(narrow.weights, weights_only=True)["state_dict"]
    found = place.dense_model().state_dict()
    assert all(torch.equal(wanted[name], tensor) for name, tensor in found.items())
    again = load_recipe(None, checkpoint=narrow.weights, mmdet3d_config=narrow.config)
    assert again == recipe


def test_recipes_of_full_size_fine_tune_elsewhere_and_a_given_recipe_stays_as_it_is(
    narrow: Written, tmp_path: Path
) -> None:
    recipe = load_recipe(None, checkpoint=narrow.weights, mmdet3d_config=narrow.config)
    assert (recipe.prune, recipe.finetune.steps) == (PruneRecipe(), 0)
    (tmp_path / "recipe.toml").write_text("[prune]\nbatch_size = 3\n")
    given = load_recipe(tmp_path / "recipe.toml", checkpoint=narrow.weights, mmdet3d_config=narrow.config)
    assert given.prune == PruneRecipe(batch_size=3)
    assert given.finetune == TrainRecipe()


def test_what_is_saved_of_such_a_model_is_still_that_model(narrow: Written, tmp_path: Path) -> None:
    """A pruned or fine-tuned descendant keeps the configuration, not the preset's."""
    model = open_checkpoint(narrow.weights, mmdet3d_config=narrow.config).model
    io.save_checkpoint(tmp_path / "tuned.safetensors", model.state_dict(), io.describe(model, R50))
    assert io.config_from_checkpoint(tmp_path / "tuned.safetensors") == NARROW
    assert io.model_from_checkpoint(tmp_path / "tuned.safetensors", preset=R50).config == NARROW
    assert io.describe(tiny_model(), PRESET) == {"preset": PRESET}


def test_a_configuration_needs_its_own_checkpoint(narrow: Written, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="without a checkpoint"):
        load_recipe(None, mmdet3d_config=narrow.config)
    ours = tmp_path / "ours.safetensors"
    io.save_checkpoint(ours, tiny_model().state_dict(), {"preset": PRESET})
    with pytest.raises(CheckpointError, match="no checkpoint of mmdet3d"):
        load_recipe(None, checkpoint=ours, mmdet3d_config=narrow.config)
    with pytest.raises(CheckpointError, match=f"is a {R50}"):
        open_checkpoint(narrow.weights, preset=PRESET, mmdet3d_config=narrow.config)
    other = write(tmp_path / "other.pth", tiny_model().state_dict())
    with pytest.raises(CheckpointError, match=r"config\.py:\n.*camera backbone"):
        load_recipe(None, checkpoint=other, mmdet3d_config=narrow.config)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["convert", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_convert_writes_weights_and_a_recipe(tmp_path: Path) -> None:
    path = write(tmp_path / "epoch_6.pth", as_mit(tiny_model().state_dict() | grid_of_tiny()))
    said = invoke(str(path), "--model", PRESET, "--out", str(tmp_path / "ours"), "--sweeps", "3")
    assert "names of mit-han-lab, sparse weights out-last" in said
    assert "view_transform.frustum" in said
    recipe = load(tmp_path / "ours" / "recipe.toml")
    assert (recipe.model, recipe.data.sweeps) == (PRESET, 3)
    assert (recipe.prune, recipe.finetune.steps) == (PruneRecipe(), 0)
    found = Workplace(recipe).dense_model().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tiny_model().state_dict().items())
    with pytest.raises(CheckpointError, match="does not say which model") as caught:
        invoke(str(path), "--out", str(tmp_path / "x"))
    assert "--mmdet3d-config" in caught.value.remedy


def test_convert_goes_to_mmdet3d_and_back(narrow: Written, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    invoke(str(narrow.weights), "--mmdet3d-config", str(narrow.config), "--out", str(ours))
    said = invoke(str(ours / "model.safetensors"), "--to", "mmdet3d", "--out", str(theirs), "--sweeps", "7")
    assert (theirs / "config.py").read_text().replace(str(theirs), "") == narrow.config.read_text().replace(
        str(narrow.config.parent), ""
    )
    assert said.count("\n") == 3
    io.save_checkpoint(tmp_path / "tiny.safetensors", tiny_model().state_dict(), {"preset": PRESET})
    with pytest.raises(UnsupportedError, match=r"backbone\.blocks"):
        invoke(str(tmp_path / "tiny.safetensors"), "--to", "mmdet3d", "--out", str(tmp_path / "no"))
