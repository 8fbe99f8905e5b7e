"""Any checkpoint, ours or foreign, as a model and the preset whose stage contract it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altermoma.checkpoints.convert import Loaded, load_foreign
from altermoma.checkpoints.io import PICKLED, describe, load_checkpoint, model_from_checkpoint, save_checkpoint
from altermoma.checkpoints.mmdet3d.read_config import read_file
from altermoma.errors import CheckpointError, UnsupportedError
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import PRESETS, config_of
from altermoma.models.record import to_record
from altermoma.storage import cache_folder, content_key, sha256_of

# What a stage contract does not fix: the inside of the stages, and how frames become their inputs.
_INSIDE = ("backbone", "camera.neck", "camera.depth_widths", "camera.depthnet", "camera.channels", "bev", "lidar")
_PREPARATION = (
    "geometry.image.resize",
    "geometry.image.resample",
    "geometry.image.mean",
    "geometry.image.std",
    "geometry.max_points_per_voxel",
    "geometry.max_voxels",
    "geometry.post_center_range",
)
_HEAD = ("head.embed", "head.attention_heads", "head.ffn", "head.branch", "head.point_classes")


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """A checkpoint that was opened.

    Attributes:
        model: at its widths, in eval mode.
        preset: whose stage contract the model keeps.
        sweeps: LiDAR sweeps per frame that it was trained with; None where nothing says it.
        repeat_key: whether frames without earlier sweeps had their key sweep in place of them.
        foreign: how a .pth was read; None for our own files.
        zeros: what our own file says of weights that stay zero, under "sparsity"; None for a dense one.
    """

    model: FusionModel
    preset: str
    sweeps: int | None = None
    repeat_key: bool = False
    foreign: Loaded | None = None
    zeros: Any = None


def open_checkpoint(path: Path, *, preset: str | None = None, mmdet3d_config: Path | None = None) -> Adopted:
    """Opens a .safetensors of ours, or a .pth of mit-han-lab or mmdet3d.

    Args:
        path: the file.
        preset: what a .pth holds; not needed where `mmdet3d_config` is given.
        mmdet3d_config: the configuration that a .pth was trained with.

    Raises:
        CheckpointError: not that model, or nothing says which it is.
        UnsupportedError: a configuration that we cannot represent.
    """
    if path.suffix not in PICKLED:
        if mmdet3d_config is not None:
            raise CheckpointError(
                f"{path.name} is no checkpoint of mmdet3d",
                expected="a .pth beside its configuration",
                remedy="leave out --mmdet3d-config: a checkpoint of altermoma says itself what it is",
            )
        model = model_from_checkpoint(path, preset=preset)
        metadata = load_checkpoint(path)[1]
        return Adopted(model=model, preset=str(metadata["preset"]), zeros=metadata.get("sparsity"))
    if mmdet3d_config is not None:
        adapted = read_file(mmdet3d_config)
        family = family_of(adapted.model)
        if preset not in (None, family):
            raise CheckpointError(
                f"{mmdet3d_config.name} is a {family}", expected=f"a {preset}", remedy="leave out --model"
            )
        loaded = load_foreign(path, adapted.model, name=mmdet3d_config.name, pruned=adapted.pruned)
        return Adopted(
            model=loaded.model, preset=family, sweeps=adapted.sweeps, repeat_key=adapted.repeat_key, foreign=loaded
        )
    if preset is None:
        raise CheckpointError(
            f"{path.name} does not say which model its weights are of",
            expected="a preset, or the configuration of the training, beside a checkpoint of another program",
            remedy="give --model or --mmdet3d-config",
        )
    loaded = load_foreign(path, config_of(preset), name=preset)
    return Adopted(model=loaded.model, preset=preset, foreign=loaded)


def converted(path: Path, mmdet3d_config: Path) -> tuple[Path, Adopted]:
    """A .pth as a checkpoint of ours in the cache; and what it is."""
    adopted = open_checkpoint(path, mmdet3d_config=mmdet3d_config)
    key = content_key({"weights": sha256_of(path), "config": to_record(adopted.model.config)})
    file = cache_folder() / f"checkpoint-{key}.safetensors"
    save_adopted(file, adopted, source=path.name)
    return file, adopted


def save_adopted(file: Path, adopted: Adopted, *, source: str) -> None:
    """Writes a checkpoint of ours."""
    zeros = {} if adopted.zeros is None else {"sparsity": adopted.zeros}
    metadata = describe(adopted.model, adopted.preset) | {"source": source} | zeros
    save_checkpoint(file, adopted.model.state_dict(), metadata)


def family_of(config: ModelConfig) -> str:
    """The preset whose stage contract fits a model: its own where it is a preset, else one of the same interface.

    Raises:
        UnsupportedError: no preset has this interface; names the fields that differ from the nearest.
    """
    for name, preset in PRESETS.items():
        if config == preset:
            return name
    differing = {name: _differences(config, preset) for name, preset in PRESETS.items()}
    nearest = min(differing, key=lambda name: len(differing[name]))
    if differing[nearest]:
        fields = "; ".join(f"{field} = {found}, not {own}" for field, found, own in differing[nearest])
        raise UnsupportedError(
            f"no stage contract fits this model: {fields}",
            expected=f"the interface of a preset, such as {nearest}",
            remedy="train with the ranges and grids of that preset: stage contracts (export/*.toml) fix them",
        )
    return nearest


def _differences(config: ModelConfig, preset: ModelConfig) -> list[tuple[str, Any, Any]]:
    found, own = dict(_flat(to_record(config))), dict(_flat(to_record(preset)))
    skipped = (*_INSIDE, *_PREPARATION, *_HEAD)
    differing = [
        (field, found.get(field), own.get(field))
        for field in {**own, **found}
        if not any(field == name or field.startswith(f"{name}.") for name in skipped)
        and found.get(field) != own.get(field)
    ]
    if config.geometry.max_voxels > preset.geometry.max_voxels:
        differing.append(("geometry.max_voxels", config.geometry.max_voxels, preset.geometry.max_voxels))
    if type(config.lidar) is not type(preset.lidar):
        differing.append(("lidar", type(config.lidar).__name__, type(preset.lidar).__name__))
    return differing


def _flat(record: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
