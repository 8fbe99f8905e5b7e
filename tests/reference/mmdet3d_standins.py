"""Stand-ins for the compiled parts of mmdet3d's BEVFusion, so that it runs on a CPU beside torch alone.

`install` comes before the first import of mmdet3d. It lets a CUDA build of torchvision import beside a CPU build of
torch, gives mmcv-lite an empty `mmcv._ext`, and writes BEVFusion's two extensions (pooling, voxels) in torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBRARIES: list[torch.library.Library] = []
"""Operator schemas live as long as these objects."""


def install(checkout: Path) -> None:
    """Makes `projects.BEVFusion` of an mmdetection3d checkout importable.

    Raises:
        ImportError: mmdet3d, one of the packages it needs, or the project is missing.
    """
    make_importable()
    sys.path.insert(0, str(checkout))
    root = "projects.BEVFusion.bevfusion.ops"
    pool = types.ModuleType(f"{root}.bev_pool.bev_pool_ext")
    pool.__dict__.update(bev_pool_forward=bev_pool_forward, bev_pool_backward=_not_here)
    voxels = types.ModuleType(f"{root}.voxel.voxel_layer")
    names = ("dynamic_voxelize", "dynamic_point_to_voxel_forward", "dynamic_point_to_voxel_backward")
    voxels.__dict__.update(hard_voxelize=hard_voxelize, **dict.fromkeys(names, _not_here))
    for module in (pool, voxels):
        # The project keeps those that it was first imported with.
        sys.modules.setdefault(module.__name__, module)
    importlib.import_module("spconv.pytorch")
    importlib.import_module("mmdet3d.utils").register_all_modules(init_default_scope=True)
    importlib.import_module("projects.BEVFusion.bevfusion")


def make_importable() -> None:
    """Lets mmdet3d itself be imported."""
    _import_torchvision()
    sys.modules.setdefault("mmcv._ext", _Stub("mmcv._ext"))


class _Stub(types.ModuleType):
    """A module that has every function and runs none."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _not_here


def _not_here(*_: Any, **__: Any) -> None:
    raise NotImplementedError("this compiled operator has no stand-in")


def _import_torchvision() -> None:
    """A CUDA build fails for want of two operator schemas; with them defined it imports, without kernels."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
        importlib.import_module("torchvision")


def bev_pool_forward(  # noqa: PLR0913, PLR0917
    rows: Tensor, cells: Tensor, lengths: Tensor, starts: Tensor, batch: int, depth: int, height: int, width: int
) -> Tensor:
    """Sums rows by cell (x, y, z, frame): [P, C] -> [B, D, H, W, C]."""
    batch, depth, height, width = (int(size) for size in (batch, depth, height, width))
    x, y, z, frame = cells.long().unbind(1)
    out = rows.new_zeros(batch * depth * height * width, rows.shape[1])
    out.index_add_(0, ((frame * depth + z) * height + x) * width + y, rows)
    return out.view(batch, depth, height, width, -1)


def hard_voxelize(  # noqa: PLR0913, PLR0917
    points: Tensor,
    voxels: Tensor,
    coordinates: Tensor,
    counts: Tensor,
    voxel_size: Sequence[float],
    point_range: Sequence[float],
    max_points: int,
    max_voxels: int,
    *_: Any,
) -> int:
    """Fills voxels in the order in which the cloud first touches them; returns how many there are."""
    size, limits = torch.tensor(voxel_size, dtype=points.dtype), torch.tensor(point_range, dtype=points.dtype)
    grid = ((limits[3:] - limits[:3]) / size).round().long()
    cells = ((points[:, :3] - limits[:3]) / size).floor().long()
    inside = ((cells >= 0) & (cells < grid)).all(1)
    kept, cells = inside.nonzero()[:, 0], cells[inside]
    keys = (cells[:, 0] * grid[1] + cells[:, 1]) * grid[2] + cells[:, 2]
    unique, which = keys.unique(return_inverse=True)
    first = torch.full((len(unique),), len(keys)).scatter_reduce(0, which, torch.arange(len(keys)), "amin")
    order = first.argsort()
    number = torch.empty_like(order)
    number[order] = torch.arange(len(unique))
    by_voxel = number[which].argsort(stable=True)
    voxel = number[which][by_voxel]
    place = torch.arange(len(voxel)) - torch.searchsorted(voxel, torch.arange(len(unique)))[voxel]
    fits = (place < max_points) & (voxel < max_voxels)
    voxels[voxel[fits], place[fits]] = points[kept[by_voxel[fits]]]
    found = min(len(unique), int(max_voxels))
    coordinates[:found] = cells[first[order[:found]]].int()
    counts[:found] = torch.bincount(voxel, minlength=len(unique))[:found].clamp(max=max_points).int()
    return found
