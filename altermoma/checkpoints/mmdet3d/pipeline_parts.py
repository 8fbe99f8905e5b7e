"""mmdet3d's test pipeline: what our own preparation of frames does in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altermoma.checkpoints.mmdet3d.fields import Fields
from altermoma.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Attributes:
    resize: factor on native pictures before they are cropped.
    sweeps: merged per frame, the key sweep included.
    repeat_key: frames without earlier sweeps have their key sweep in place of them.
    """

    resize: float
    sweeps: int
    repeat_key: bool


def read_pipeline(config: Mapping[str, Any], image_hw: tuple[int, ...], point_range: tuple[float, ...]) -> Pipeline:
    """The pipeline of `test_dataloader`, or `test_pipeline` where there is none."""
    steps, path = _steps(config)
    resize, sweeps, repeat_key = None, 1, False
    for index, step in enumerate(steps):
        with Fields(step, f"{path}[{index}]") as fields:
            kind = fields.kind(*_STEPS, "ImageAug3D", "LoadPointsFromMultiSweeps", "PointsRangeFilter")
            if kind == "ImageAug3D":
                resize = _image(fields, image_hw)
            elif kind == "LoadPointsFromMultiSweeps":
                sweeps, repeat_key = 1 + _sweeps(fields), fields.get("pad_empty_sweeps", False) is True
            elif kind == "PointsRangeFilter":
                fields.must("point_cloud_range", point_range)
            else:
                _STEPS[kind](fields)
    if resize is None:
        raise UnsupportedError(f"{path} has no ImageAug3D", expected="pictures resized and cropped by ImageAug3D")
    return Pipeline(resize=resize, sweeps=sweeps, repeat_key=repeat_key)


def _steps(config: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    dataset, path = config.get("test_dataloader", {}).get("dataset", {}), "test_dataloader.dataset"
    while isinstance(dataset.get("dataset"), dict):
        dataset, path = dataset["dataset"], f"{path}.dataset"
    if "pipeline" in dataset:
        return list(dataset["pipeline"]), f"{path}.pipeline"
    if "test_pipeline" not in config:
        raise UnsupportedError("test_pipeline is missing", expected="a whole configuration of BEVFusion")
    return list(config["test_pipeline"]), "test_pipeline"


def _image(fields: Fields, image_hw: tuple[int, ...]) -> float:
    fields.must("final_dim", image_hw)
    low, high = fields.numbers("resize_lim", 2)
    fields.must("bot_pct_lim", (0.0, 0.0))
    fields.must("is_train", False)
    fields.skip("rot_lim", "rand_flip")  # in training only
    return (low + high) / 2


def _sweeps(fields: Fields) -> int:
    fields.must("load_dim", 5, default=5)
    _columns(fields, default=[0, 1, 2, 4])
    fields.must("remove_close", True, default=False)
    fields.skip("backend_args", "test_mode")
    return fields.integer("sweeps_num", 10)


def _points(fields: Fields) -> None:
    fields.must("coord_type", "LIDAR")
    fields.must("load_dim", 5, default=6)
    _columns(fields, default=[0, 1, 2])
    for switch in ("shift_height", "use_color", "norm_intensity", "norm_elongation"):
        fields.must(switch, False, default=False)
    fields.skip("backend_args")


def _columns(fields: Fields, default: list[int]) -> None:
    if fields.get("use_dim", default) not in (5, [0, 1, 2, 3, 4]):
        fields.refuse("use_dim", "5: x, y, z, intensity and time lag")


def _pictures(fields: Fields) -> None:
    fields.must("color_type", "color", default="unchanged")
    fields.must("num_ref_frames", -1, default=-1)
    fields.skip("to_float32", "backend_args", "num_views", "test_mode", "set_default_scale")


def _pack(fields: Fields) -> None:
    fields.skip("keys", "meta_keys")


_STEPS = {"BEVLoadMultiViewImageFromFiles": _pictures, "LoadPointsFromFile": _points, "Pack3DDetInputs": _pack}
