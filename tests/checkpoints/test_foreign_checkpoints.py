"""Checkpoints of mit-han-lab and mmdet3d by name, and every way in which one can be the wrong one."""

from __future__ import annotations

import collections
import dataclasses
import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import PRESET, as_mit, grid_of_tiny, tiny_model, write
from torch import Tensor

from altermoma.checkpoints.convert import Loaded, load_foreign
from altermoma.checkpoints.io import model_from_checkpoint
from altermoma.checkpoints.names_mit import from_mit, to_mit
from altermoma.checkpoints.sparse_layout import to_out_first, to_out_last
from altermoma.errors import CheckpointError
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import config_of

KEYS = Path(__file__).resolve().parents[3] / "shared" / "mmdet3d" / "bevfusion_checkpoint_keys.json"


def load(path: Path) -> Loaded:
    return load_foreign(path, config_of(PRESET), name=PRESET)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("spelling", ["mmdet3d", "mit-han-lab", "early mmdet3d", "data parallel"])
def test_every_spelling_gives_the_same_model(spelling: str, tmp_path: Path) -> None:
    own = tiny_model().state_dict()
    state = own | grid_of_tiny()
    if spelling == "mit-han-lab":
        state = as_mit(state)
    elif spelling == "early mmdet3d":
        state = {name.replace("view_transform.", "vtransform."): tensor for name, tensor in state.items()}
    elif spelling == "data parallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    loaded = load(write(tmp_path / "epoch_6.pth", state))
    assert same(loaded.model.state_dict(), own)
    assert loaded.spelling == ("mit-han-lab" if spelling == "mit-han-lab" else "mmdet3d")
    assert loaded.layout == ("out-last" if spelling == "mit-han-lab" else "out-first")
    assert set(loaded.set_aside) == set(grid_of_tiny())
    assert not loaded.model.training


def test_names_are_those_of_the_key_list() -> None:
    if not KEYS.is_file():
        pytest.skip(f"no key list at {KEYS}")
    keys = json.loads(KEYS.read_text())["keys"]
    assert len(keys) == 582
    assert [from_mit(key["mit"]) for key in keys] == [key["mmdet3d"] for key in keys]
    assert [to_mit(key["mmdet3d"]) for key in keys] == [key["mit"] for key in keys]


@pytest.mark.parametrize("preset", ["bevfusion-mit-swint-voxelnet-map", "bevfusion-mit-r101-pointpillars"])
def test_names_of_pillars_and_of_the_map_head(preset: str) -> None:
    """As mit-han-lab's PointPillarsEncoder and BEVSegmentationHead name their children."""
    with torch.device("meta"):
        ours = FusionModel(config_of(preset)).state_dict()
    mit = list(as_mit(ours))
    assert [from_mit(name) for name in mit] == list(ours)
    assert [to_mit(name) for name in ours] == mit


@pytest.mark.parametrize("channels", [(3, 3), (5, 16), (3, 16), (16, 3)])
def test_layouts_are_told_apart_by_shape_even_where_channels_equal_the_kernel(channels: tuple[int, int]) -> None:
    ours = {
        "a": torch.randn(channels[1], 3, 3, 3, channels[0]),
        "out": torch.randn(8, 1, 1, 3, 8),
        "bias": torch.randn(4),
    }
    last = to_out_last(ours)
    assert last["a"].shape == (3, 3, 3, *channels)
    assert torch.equal(last["a"][0, 1, 2], ours["a"][:, 0, 1, 2].T)
    assert same(to_out_first(last, ours), ours)
    assert same(to_out_first(ours, ours), ours)
    with pytest.raises(CheckpointError, match="one layout"):
        to_out_first({"a": torch.zeros(16, 3, 3, 3, 5), "out": last["out"]}, ours | {"a": torch.zeros(16, 3, 3, 3, 5)})


def test_a_training_checkpoint_of_mmengine_is_read_without_mmengine(tmp_path: Path) -> None:
    """The message hub's HistoryBuffer holds numpy arrays and bound methods; neither is needed, none is built."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        @classmethod
        def mean(cls) -> None: ...

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    buffer = HistoryBuffer()
    buffer.__dict__.update(
        _log_history=np.arange(3.0), _count_history=np.arange(3), _statistics_methods={"mean": HistoryBuffer.mean}
    )
    hub = {"log_scalars": {"train/lr": buffer}, "runtime_info": {"iter": np.float64(2.5), "loss": np.int64(3)}}
    own = tiny_model().state_dict()
    parents = {name: types.ModuleType(name) for name in ("mmengine", "mmengine.logging")}
    sys.modules.update({**parents, module.__name__: module})
    try:
        path = write(tmp_path / "epoch_6.pth", own, message_hub=hub, optimizer={"step": torch.ones(1)})
    finally:
        for name in (*parents, module.__name__):
            del sys.modules[name]
    assert same(load(path).model.state_dict(), own)


def test_a_foreign_checkpoint_is_loaded_as_the_preset_that_the_recipe_names(tmp_path: Path) -> None:
    path = write(tmp_path / "epoch_6.pth", as_mit(tiny_model().state_dict()))
    assert same(model_from_checkpoint(path, preset=PRESET).state_dict(), tiny_model().state_dict())
    with pytest.raises(CheckpointError, match="which model"):
        model_from_checkpoint(path)


class _Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_code_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    path = write(tmp_path / "epoch_6.pth", tiny_model().state_dict(), hooks=[_Malice(target)])
    with pytest.raises(CheckpointError, match="would call") as caught:
        load(path)
    assert not target.exists()
    assert "weights alone" in caught.value.remedy
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": _Malice(target)}))
    with pytest.raises(CheckpointError):
        load(tmp_path / "plain.pth")
    assert not target.exists()


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = write(tmp_path / "epoch_6.pth", tiny_model().state_dict())
    payload = path.read_bytes()
    path.write_bytes(payload[: int(len(payload) * kept)])
    with pytest.raises(CheckpointError, match="not a readable torch checkpoint"):
        load(path)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load(tmp_path / "missing.pth")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="its entries are epoch, optimizer"):
        load(tmp_path / "other.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="it is a list"):
        load(tmp_path / "list.pth")
    state = tiny_model().state_dict()
    state["fusion_layer.0.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"fusion_layer\.0\.weight holds NaN"):
        load(write(tmp_path / "nan.pth", state))


def test_another_model_is_reported_by_stage(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    renamed = {name.replace("img_backbone.layer4", "img_backbone.stages.3"): t for name, t in state.items()}
    del renamed["bbox_head.shared_conv.bias"]
    renamed["fusion_layer.0.weight"] = torch.zeros(64, 80, 3, 3)
    renamed["heads.depth.classifier.0.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load(write(tmp_path / "other.pth", collections.OrderedDict(renamed)))
    lines = caught.value.found.splitlines()
    assert "camera backbone: 18 missing (img_backbone.layer4.0." in lines[1]
    assert "18 unexpected (img_backbone.stages.3.0." in lines[1]
    assert "fuser: 1 of another shape (fusion_layer.0.weight [64, 80, 3, 3] float32, not [64, 96, 3, 3]" in lines[2]
    assert "head: 1 missing (bbox_head.shared_conv.bias)" in lines[3]
    assert "heads: 1 unexpected (heads.depth.classifier.0.weight)" in lines[4]


def test_another_width_is_refused_and_the_preset_that_fits_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "epoch_6.pth", tiny_model().state_dict())
    wider = dataclasses.replace(config_of(PRESET), camera=dataclasses.replace(config_of(PRESET).camera, neck=80))
    with pytest.raises(CheckpointError, match="of another shape") as caught:
        load_foreign(path, wider, name="my-model")
    assert f"they fit {PRESET}" in caught.value.remedy


def test_another_depth_range_is_found_by_the_frustum(tmp_path: Path) -> None:
    grid = grid_of_tiny()
    grid["view_transform.frustum"][..., 2] += 0.5
    with pytest.raises(CheckpointError, match=r"another view transform: view_transform\.frustum"):
        load(write(tmp_path / "a.pth", tiny_model().state_dict() | grid))
    grid = grid_of_tiny() | {"view_transform.dx": torch.tensor([0.4, 0.4, 10.0])}
    with pytest.raises(CheckpointError, match=r"dx is \[3\] \[0\.4, 0\.4, 10\.0\]"):
        load(write(tmp_path / "b.pth", tiny_model().state_dict() | grid))
