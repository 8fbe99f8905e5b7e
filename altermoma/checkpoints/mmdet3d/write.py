"""A model of ours as a folder that mmdet3d trains and tests: weights, configuration, a module where it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import altermoma
from altermoma.checkpoints.foreign import save_foreign
from altermoma.checkpoints.mmdet3d.emit import assignments
from altermoma.checkpoints.mmdet3d.read_config import PRUNED
from altermoma.checkpoints.mmdet3d.write_model import model_table, nearest
from altermoma.checkpoints.mmdet3d.write_training import training_tables
from altermoma.checkpoints.names_mmdet3d import with_constants
from altermoma.models.fusion import FusionModel
from altermoma.models.sparse_encoder import GatherConv
from altermoma.storage import write_text

CONFIG_FILE, WEIGHTS_FILE, MODULE_FILE = "config.py", "model.pth", "pruned_bevfusion.py"
_PROJECT = "projects.BEVFusion.bevfusion"
_SPCONV_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Written:
    """`module` is None where mmdet3d's own classes have all widths."""

    config: Path
    weights: Path
    module: Path | None


def write_mmdet3d(model: FusionModel, folder: Path, *, sweeps: int) -> Written:
    """Writes `config.py`, `model.pth` and, for widths that mmdet3d cannot be configured to, `pruned_bevfusion.py`.

    Args:
        model: dense or pruned.
        folder: is made where it is not there.
        sweeps: LiDAR sweeps merged per frame, the key sweep included.

    Raises:
        UnsupportedError: layers that mmdet3d's BEVFusion does not have; names our field.
    """
    table = model_table(model.config)
    widths = other_widths(model)
    imports = [_PROJECT]
    if widths:
        table = {**table, "type": PRUNED, "widths": widths}
        imports.append(Path(MODULE_FILE).stem)
    tables = {
        "custom_imports": {"imports": imports, "allow_failed_imports": False},
        **training_tables(model.config.geometry, sweeps),
        "model": table,
        "load_from": str((folder / WEIGHTS_FILE).resolve()),
    }
    module = folder / MODULE_FILE if widths else None
    if module is not None:
        write_text(module, (Path(__file__).parent / "templates" / f"{MODULE_FILE}.txt").read_text())
    save_foreign(folder / WEIGHTS_FILE, *mmdet3d_state(model))
    write_text(folder / CONFIG_FILE, _heading(folder) + assignments(tables))
    return Written(config=folder / CONFIG_FILE, weights=folder / WEIGHTS_FILE, module=module)


def mmdet3d_state(model: FusionModel) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Weights under mmdet3d's names, and the version of each module.

    Without version 2, mmdet3d takes sparse weights to be laid out as in mmcv and permutes them: silently, where shapes
    allow it.
    """
    versions = {
        name: _SPCONV_VERSION if isinstance(module, GatherConv) else module._version
        for name, module in model.named_modules()
    }
    return with_constants(model.state_dict(), model.config.geometry), versions


def other_widths(model: FusionModel) -> dict[str, list[int]]:
    """Layers whose channels differ from those of the model that mmdet3d's classes build: [out, in], or [channels]."""
    with torch.device("meta"):
        configurable = FusionModel(nearest(model.config))
    found = {}
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.shape != configurable.get_submodule(name).weight.shape:
            found[name] = _channels(layer, weight)
    return found


def _channels(layer: nn.Module, weight: Tensor) -> list[int]:
    if weight.dim() == 1:
        return [int(weight.shape[0])]
    if isinstance(layer, GatherConv):
        return [int(weight.shape[0]), int(weight.shape[-1])]
    outputs, inputs = weight.shape[:2]
    return [int(inputs), int(outputs)] if isinstance(layer, nn.ConvTranspose2d) else [int(outputs), int(inputs)]


def _heading(folder: Path) -> str:
    return (
        f"# Written by altermoma {altermoma.__version__}. Train with mmdet3d 1.4, in its checkout:\n"
        f"#   PYTHONPATH=.:{folder.resolve()} python tools/train.py {(folder / CONFIG_FILE).resolve()}\n"
        "# data/nuscenes and its info files are those of mmdet3d's own configurations. spconv 2 is needed.\n\n"
    )
