"""What a mmdet3d configuration needs besides the model to fine-tune and to test it on nuScenes."""

from __future__ import annotations

from typing import Any

from altermoma.frames import CLASS_NAMES
from altermoma.geometry import Geometry

_CAMERAS = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK", "BACK_RIGHT", "BACK_LEFT")
_META_KEYS = (
    "cam2img", "ori_cam2img", "lidar2cam", "lidar2img", "cam2lidar", "ori_lidar2img", "img_aug_matrix",
    "lidar_aug_matrix", "box_type_3d", "sample_idx", "lidar_path", "img_path", "num_pts_feats",
)  # fmt: skip


def training_tables(geometry: Geometry, sweeps: int) -> dict[str, Any]:
    """Top-level tables: data, pipelines, schedule. The schedule is a short fine-tuning, as of a pruned model."""
    train, test = _train_pipeline(geometry, sweeps), _test_pipeline(geometry, sweeps)
    loader = {"batch_size": 4, "num_workers": 4, "persistent_workers": True}
    val = {
        **loader,
        "batch_size": 1,
        "drop_last": False,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": _dataset("val", test, test_mode=True),
    }
    metric = {
        "type": "NuScenesMetric",
        "data_root": "data/nuscenes/",
        "ann_file": "data/nuscenes/nuscenes_infos_val.pkl",
        "metric": "bbox",
    }
    return {
        "default_scope": "mmdet3d",
        "class_names": list(CLASS_NAMES),
        "metainfo": {"classes": list(CLASS_NAMES)},
        "train_pipeline": train,
        "test_pipeline": test,
        "train_dataloader": {
            **loader,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "dataset": {"type": "CBGSDataset", "dataset": _dataset("train", train, test_mode=False)},
        },
        "val_dataloader": val,
        "test_dataloader": val,
        "val_evaluator": metric,
        "test_evaluator": metric,
        "train_cfg": {"by_epoch": True, "max_epochs": 6, "val_interval": 1},
        "val_cfg": {},
        "test_cfg": {},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 2e-4, "weight_decay": 0.01},
            "clip_grad": {"max_norm": 35, "norm_type": 2},
        },
        "param_scheduler": _rates(),
        "auto_scale_lr": {"enable": False, "base_batch_size": 32},
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {"type": "LoggerHook", "interval": 50},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {"type": "CheckpointHook", "interval": 1},
            "sampler_seed": {"type": "DistSamplerSeedHook"},
        },
    }


def _rates() -> list[dict[str, Any]]:
    """A short rise, then half a cosine over all six epochs."""
    rise = {"type": "LinearLR", "start_factor": 0.33333333, "by_epoch": False, "begin": 0, "end": 500}
    fall = {"type": "CosineAnnealingLR", "begin": 0, "T_max": 6, "end": 6, "by_epoch": True, "eta_min_ratio": 1e-4}
    return [rise, fall | {"convert_to_iter_based": True}]


def _dataset(split: str, pipeline: list[dict[str, Any]], *, test_mode: bool) -> dict[str, Any]:
    prefix = {f"CAM_{camera}": f"samples/CAM_{camera}" for camera in _CAMERAS}
    return {
        "type": "NuScenesDataset",
        "data_root": "data/nuscenes/",
        "ann_file": f"nuscenes_infos_{split}.pkl",
        "data_prefix": {"pts": "samples/LIDAR_TOP", **prefix, "sweeps": "sweeps/LIDAR_TOP"},
        "pipeline": pipeline,
        "metainfo": {"classes": list(CLASS_NAMES)},
        "modality": {"use_lidar": True, "use_camera": True},
        "test_mode": test_mode,
        "use_valid_flag": not test_mode,
        "box_type_3d": "LiDAR",
    }


def _loading(sweeps: int) -> list[dict[str, Any]]:
    columns = {"load_dim": 5, "use_dim": 5}
    steps: list[dict[str, Any]] = [
        {"type": "BEVLoadMultiViewImageFromFiles", "to_float32": True, "color_type": "color"},
        {"type": "LoadPointsFromFile", "coord_type": "LIDAR", **columns},
    ]
    if sweeps > 1:
        merged = {"sweeps_num": sweeps - 1, **columns, "pad_empty_sweeps": True, "remove_close": True}
        steps.append({"type": "LoadPointsFromMultiSweeps", **merged})
    return steps


def _train_pipeline(geometry: Geometry, sweeps: int) -> list[dict[str, Any]]:
    resize = resize_of(geometry)
    extent = {"point_cloud_range": list(geometry.point_range)}
    return [
        *_loading(sweeps),
        {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True, "with_attr_label": False},
        _pictures(geometry, [0.8 * resize, 1.15 * resize], training=True),
        {
            "type": "BEVFusionGlobalRotScaleTrans",
            "scale_ratio_range": [0.9, 1.1],
            "rot_range": [-0.78539816, 0.78539816],
            "translation_std": 0.5,
        },
        {"type": "BEVFusionRandomFlip3D"},
        {"type": "PointsRangeFilter", **extent},
        {"type": "ObjectRangeFilter", **extent},
        {"type": "ObjectNameFilter", "classes": list(CLASS_NAMES)},
        {"type": "PointShuffle"},
        {
            "type": "Pack3DDetInputs",
            "keys": ["points", "img", "gt_bboxes_3d", "gt_labels_3d", "gt_bboxes", "gt_labels"],
            "meta_keys": [*_META_KEYS, "transformation_3d_flow", "pcd_rotation", "pcd_scale_factor", "pcd_trans"],
        },
    ]


def _test_pipeline(geometry: Geometry, sweeps: int) -> list[dict[str, Any]]:
    resize = resize_of(geometry)
    return [
        *_loading(sweeps),
        _pictures(geometry, [resize, resize], training=False),
        {"type": "PointsRangeFilter", "point_cloud_range": list(geometry.point_range)},
        {
            "type": "Pack3DDetInputs",
            "keys": ["img", "points", "gt_bboxes_3d", "gt_labels_3d"],
            "meta_keys": list(_META_KEYS),
        },
    ]


def _pictures(geometry: Geometry, limits: list[float], *, training: bool) -> dict[str, Any]:
    return {
        "type": "ImageAug3D",
        "final_dim": [geometry.image.height, geometry.image.width],
        "resize_lim": limits,
        "bot_pct_lim": [0.0, 0.0],
        "rot_lim": [-5.4, 5.4] if training else [0.0, 0.0],
        "rand_flip": training,
        "is_train": training,
    }


def resize_of(geometry: Geometry) -> float:
    """Factor on nuScenes' pictures of 1600 pixels; a geometry that names none fits their width."""
    return geometry.image.width / 1600 if geometry.image.resize is None else geometry.image.resize
