"""mmdet3d's configuration of a BEVFusion as a model of ours; what cannot be represented is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from altermoma.checkpoints.mmdet3d import camera_parts, geometry_parts, lidar_parts
from altermoma.checkpoints.mmdet3d.fields import Fields, plain
from altermoma.checkpoints.mmdet3d.pipeline_parts import read_pipeline
from altermoma.errors import RecipeError, UnsupportedError
from altermoma.frames import CLASS_NAMES
from altermoma.models.config import ModelConfig

DENSE, PRUNED = "BEVFusion", "PrunedBEVFusion"
"""The detector of mmdet3d's project, and the one that `altermoma convert --to mmdet3d` writes for pruned widths."""


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What a configuration says.

    Attributes:
        model: the dense model.
        pruned: whether its checkpoint has other widths.
        sweeps: LiDAR sweeps merged per frame, the key sweep included.
        repeat_key: frames without earlier sweeps have their key sweep in place of them.
    """

    model: ModelConfig
    pruned: bool
    sweeps: int
    repeat_key: bool


def read_file(path: Path) -> Adapted:
    """Reads a .py of mmengine, with its `_base_`s. A configuration is a program: only read one that you trust.

    The modules of its `custom_imports` are not imported.

    Raises:
        RecipeError: no such file, mmengine is not installed, or it cannot read the file.
        UnsupportedError: a field that we cannot represent.
    """
    return adapt(_load(path))


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(f"no configuration at {path}", expected="a .py of mmdet3d", remedy="check --mmdet3d-config")
    try:
        from mmengine.config import Config
    except ImportError as error:
        raise RecipeError(
            f"mmdet3d configurations are read with mmengine, which cannot be imported: {error}",
            expected="mmengine 0.10",
            remedy="pip install 'altermoma[mmdet3d]'",
        ) from error
    try:
        config = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # the file is a program: it can end in any error
        raise RecipeError(
            f"mmengine cannot read {path}: {type(error).__name__}: {error}",
            expected="a configuration that mmdet3d's tools/test.py takes",
            remedy="check that the files it names in _base_ are there",
        ) from error
    return cast(dict[str, Any], plain(config.to_dict()))


def adapt(config: dict[str, Any]) -> Adapted:
    """A configuration, as plain dictionaries and lists, as a model of ours."""
    with Fields({"model": config.get("model")}, "") as whole, whole.section("model") as model:
        kind = model.kind(DENSE, PRUNED)
        backbone = camera_parts.read_backbone(model.section("img_backbone"))
        pictures, voxels = geometry_parts.read_preprocessor(model.section("data_preprocessor"))
        neck = camera_parts.read_neck(model.section("img_neck"), camera_parts.backbone_channels(backbone))
        with model.section("view_transform") as transform:
            camera = camera_parts.read_view_transform(transform, neck)
            view = geometry_parts.read_view(transform, voxels)
        point_features = lidar_parts.read_voxel_encoder(model.section("pts_voxel_encoder"))
        pipeline = read_pipeline(config, view.image_hw, voxels.point_range)
        with model.section("pts_middle_encoder") as encoder:
            lidar = lidar_parts.read_sparse_encoder(encoder, point_features)
            geometry = geometry_parts.read_geometry(
                pictures,
                voxels,
                view,
                pipeline.resize,
                point_features,
                len(lidar.stages) - 1,
            )
            lidar_parts.check_sparse_grid(encoder, lidar, geometry)
        fuser = lidar_parts.read_fuser(
            model.section("fusion_layer"), camera.channels, lidar_parts.lidar_map_channels(lidar, geometry)
        )
        bev = lidar_parts.read_bev(model.section("pts_backbone"), model.section("pts_neck"), fuser)
        head, reach = lidar_parts.read_head(model.section("bbox_head"), sum(bev.neck), geometry)
        model.must("seg_head", None, default=None)
        model.skip("init_cfg", "widths")
    _check_classes(config, head.classes)
    geometry = geometry_parts.with_reach(geometry, reach)
    found = ModelConfig(geometry=geometry, backbone=backbone, camera=camera, lidar=lidar, bev=bev, head=head)
    return Adapted(model=found, pruned=kind == PRUNED, sweeps=pipeline.sweeps, repeat_key=pipeline.repeat_key)


def _check_classes(config: dict[str, Any], count: int) -> None:
    names = config.get("metainfo", {}).get("classes", config.get("class_names"))
    if names is None or list(names) != list(CLASS_NAMES) or count != len(CLASS_NAMES):
        raise UnsupportedError(
            f"metainfo.classes = {names}, num_classes = {count}",
            expected=f"the classes of nuScenes in the order of BEVFusion: {', '.join(CLASS_NAMES)}",
            remedy="altermoma evaluates these classes only",
        )
