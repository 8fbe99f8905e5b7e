"""Models written as mmdet3d folders and read again, and configurations that we cannot represent. Without mmdet3d."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import tiny_model
from small_bevfusion import SMALL, SMALL_SWIN, pruned_model, small_model

from altermoma.checkpoints.convert import load_foreign
from altermoma.checkpoints.mmdet3d.fields import plain
from altermoma.checkpoints.mmdet3d.read_config import adapt, read_file
from altermoma.checkpoints.mmdet3d.write import write_mmdet3d
from altermoma.errors import CheckpointError, RecipeError, UnsupportedError
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import PRESETS

KEYS = Path(__file__).resolve().parents[3] / "shared" / "mmdet3d" / "bevfusion_checkpoint_keys.json"
MODELS: dict[str, tuple[Callable[[], FusionModel], ModelConfig, bool]] = {
    "dense": (small_model, SMALL, False),
    "pruned": (pruned_model, SMALL, True),
    "dense Swin": (lambda: small_model(SMALL_SWIN), SMALL_SWIN, False),
    "pruned Swin": (lambda: pruned_model(SMALL_SWIN), SMALL_SWIN, True),
}


def executed(path: Path) -> dict[str, Any]:
    """What mmengine makes of a configuration without `_base_`."""
    tables: dict[str, Any] = {}
    exec(path.read_text(), {}, tables)
    return dict(plain(tables))


@pytest.fixture(scope="module")
def dense_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("dense")
    return executed(write_mmdet3d(small_model(), folder, sweeps=10).config)


@pytest.mark.parametrize("kind", MODELS)
def test_a_written_folder_reads_back_as_the_same_model(kind: str, tmp_path: Path) -> None:
    make, config, pruned = MODELS[kind]
    model = make()
    written = write_mmdet3d(model, tmp_path, sweeps=10)
    adapted = adapt(executed(written.config))
    assert adapted.model == config
    assert (adapted.pruned, adapted.sweeps) == (pruned, 10)
    assert (written.module is not None) == pruned
    loaded = load_foreign(written.weights, adapted.model, name="it", pruned=adapted.pruned)
    own = model.state_dict()
    assert own.keys() == loaded.model.state_dict().keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in loaded.model.state_dict().items())
    if pruned:
        with pytest.raises(CheckpointError, match="of another shape"):
            load_foreign(written.weights, config, name="the dense model")


def test_spconv_is_told_that_its_weights_need_no_permuting(tmp_path: Path) -> None:
    written = write_mmdet3d(small_model(), tmp_path, sweeps=10)
    state = torch.load(written.weights, weights_only=True)["state_dict"]
    convolutions = [name.removesuffix(".weight") for name, tensor in state.items() if tensor.dim() == 5]
    assert len(convolutions) == 21
    assert all(state._metadata[name]["version"] == 2 for name in convolutions)
    assert state._metadata["img_backbone.bn1"]["version"] == torch.nn.BatchNorm2d._version


def test_the_presets_are_the_models_of_the_key_list() -> None:
    if not KEYS.is_file():
        pytest.skip(f"no key list at {KEYS}")
    keys = {key["mmdet3d"]: key["shape"] for key in json.loads(KEYS.read_text())["keys"]}
    grid = {f"view_transform.{name}" for name in ("dx", "bx", "nx", "frustum")}
    with torch.device("meta"):
        swin, resnet = (
            {name: list(tensor.shape) for name, tensor in FusionModel(PRESETS[preset]).state_dict().items()}
            for preset in ("bevfusion-mit-swint-voxelnet", "bevfusion-mit-r50-second")
        )
    assert swin == {name: shape for name, shape in keys.items() if name not in grid}
    camera = ("img_backbone.", "img_neck.")
    assert [(name, shape) for name, shape in resnet.items() if not name.startswith(camera)] == [
        (name, shape) for name, shape in swin.items() if not name.startswith(camera)
    ]


def test_a_mit_checkpoint_made_from_the_key_list_loads_into_the_preset(tmp_path: Path) -> None:
    """Names and layout from the list alone: nothing here uses our renaming."""
    if not KEYS.is_file():
        pytest.skip(f"no key list at {KEYS}")
    from altermoma.checkpoints.names_mmdet3d import constants

    config = PRESETS["bevfusion-mit-swint-voxelnet"]
    grid, state, expected = constants(config.geometry), {}, {}
    for number, key in enumerate(json.loads(KEYS.read_text())["keys"]):
        shape, integral = key["shape"], key["dtype"] == "int64"
        tensor = grid.get(key["mmdet3d"])
        if tensor is None:
            tensor = torch.full(shape, number, dtype=torch.int64 if integral else torch.float32)
            expected[key["mmdet3d"]] = tensor
            if not integral and tensor.numel() > 1:
                tensor.view(-1)[1] += 0.5
        assert list(tensor.shape) == shape
        state[key["mit"]] = tensor.permute(1, 2, 3, 4, 0).contiguous() if len(shape) == 5 else tensor
    torch.save({"state_dict": state}, tmp_path / "bevfusion-det.pth")
    loaded = load_foreign(tmp_path / "bevfusion-det.pth", config, name="swint")
    assert (loaded.spelling, loaded.layout, set(loaded.set_aside)) == ("mit-han-lab", "out-last", set(grid))
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


REFUSALS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "model.img_backbone.type": (("model", "img_backbone", "type"), "mmdet.ResNeXt"),
    "model.img_backbone.style": (("model", "img_backbone", "style"), "caffe"),
    "model.img_backbone.dcn": (("model", "img_backbone", "dcn"), {"type": "DCNv2"}),
    "model.img_neck.type": (("model", "img_neck", "type"), "FPN"),
    "model.view_transform.type": (("model", "view_transform", "type"), "LSSTransform"),
    "model.view_transform.xbound": (("model", "view_transform", "xbound"), [-51.2, 51.2, 0.8]),
    "model.view_transform.feature_size": (("model", "view_transform", "feature_size"), [4, 10]),
    "model.pts_voxel_encoder.type": (("model", "pts_voxel_encoder", "type"), "PillarFeatureNet"),
    "model.pts_middle_encoder.block_type": (("model", "pts_middle_encoder", "block_type"), "conv_module"),
    "model.pts_middle_encoder.encoder_channels": (
        ("model", "pts_middle_encoder", "encoder_channels"),
        [[8, 8, 16], [16, 12, 16], [16, 16, 32], [32, 32]],
    ),
    "model.pts_middle_encoder.sparse_shape": (("model", "pts_middle_encoder", "sparse_shape"), [256, 256, 33]),
    "model.fusion_layer.in_channels": (("model", "fusion_layer", "in_channels"), [24, 60]),
    "model.pts_backbone.norm_cfg.eps": (("model", "pts_backbone", "norm_cfg", "eps"), 1e-5),
    "model.pts_neck.use_conv_for_no_stride": (("model", "pts_neck", "use_conv_for_no_stride"), False),
    "model.bbox_head.type": (("model", "bbox_head", "type"), "CenterHead"),
    "model.bbox_head.num_decoder_layers": (("model", "bbox_head", "num_decoder_layers"), 3),
    "model.bbox_head.test_cfg.nms_type": (("model", "bbox_head", "test_cfg", "nms_type"), "rotate"),
    "model.bbox_head.iou_branch": (("model", "bbox_head", "iou_branch"), True),
    "model.seg_head": (("model", "seg_head"), {"type": "BEVSegmentationHead"}),
    "model.data_preprocessor.bgr_to_rgb": (("model", "data_preprocessor", "bgr_to_rgb"), True),
    "model.type": (("model", "type"), "MVXFasterRCNN"),
    "test_dataloader.dataset.pipeline[3].type": (
        ("test_dataloader", "dataset", "pipeline", 3),
        {"type": "MultiScaleFlipAug3D"},
    ),
    "test_dataloader.dataset.pipeline[3].final_dim": (
        ("test_dataloader", "dataset", "pipeline", 3, "final_dim"),
        [256, 704],
    ),
    "test_dataloader.dataset.pipeline[1].use_dim": (("test_dataloader", "dataset", "pipeline", 1, "use_dim"), 4),
    "metainfo.classes": (("metainfo", "classes"), ["car", "pedestrian"]),
}


@pytest.mark.parametrize("field", REFUSALS)
def test_what_cannot_be_represented_is_refused_by_name(field: str, dense_tables: dict[str, Any]) -> None:
    tables = copy.deepcopy(dense_tables)
    (*path, last), value = REFUSALS[field]
    table: Any = tables
    for key in path:
        table = table[key]
    table[last] = value
    with pytest.raises(UnsupportedError) as caught:
        adapt(tables)
    assert caught.value.found.startswith(f"{field} ")


def test_a_lidar_only_configuration_is_refused(dense_tables: dict[str, Any]) -> None:
    tables = copy.deepcopy(dense_tables)
    # As mmdet3d's own: it has no mean of pictures either.
    del tables["model"]["img_backbone"], tables["model"]["data_preprocessor"]["mean"]
    with pytest.raises(UnsupportedError, match=r"model\.img_backbone is missing") as caught:
        adapt(tables)
    assert "has both" in caught.value.remedy


def test_without_mmengine_the_install_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.py").write_text("model = dict(type='BEVFusion')\n")
    monkeypatch.setitem(sys.modules, "mmengine", None)
    monkeypatch.setitem(sys.modules, "mmengine.config", None)
    with pytest.raises(RecipeError, match="mmengine") as caught:
        read_file(tmp_path / "config.py")
    assert "pip install" in caught.value.remedy
    with pytest.raises(RecipeError, match="no configuration at"):
        read_file(tmp_path / "missing.py")


def test_a_configuration_is_read_without_importing_what_it_names(tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    written = write_mmdet3d(small_model(), tmp_path, sweeps=3)
    (tmp_path / "mine.py").write_text("_base_ = ['config.py']\nmodel = dict(bbox_head=dict(num_proposals=77))\n")
    adapted = read_file(tmp_path / "mine.py")
    assert "projects.BEVFusion" in written.config.read_text()
    assert (adapted.model.head.proposals, adapted.sweeps) == (77, 3)
    (tmp_path / "broken.py").write_text("_base_ = ['nowhere.py']\n")
    with pytest.raises(RecipeError, match="mmengine cannot read"):
        read_file(tmp_path / "broken.py")


def test_layers_that_mmdet3d_lacks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"backbone\.blocks = \(1, 1, 1, 1\) basic"):
        write_mmdet3d(tiny_model(), tmp_path, sweeps=3)
    assert not list(tmp_path.iterdir())
