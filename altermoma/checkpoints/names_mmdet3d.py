"""mmdet3d's names: ours, but for an old alias and for tensors that are no weights.

mmdet3d keeps the view transform's grid and frustum as parameters that are not trained. Ours follow from the geometry: a
checkpoint's are compared with it, which finds one that was trained on other ranges, and written back for mmdet3d.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from altermoma.errors import CheckpointError
from altermoma.geometry import Geometry

_ALIASES = (("vtransform.", "view_transform."),)
"""The first checkpoints published for mmdet3d (mmdetection3d issue 2892)."""

LEFTOVERS = ("data_preprocessor.", "pts_voxel_layer.", "encoders.lidar.voxelize.")
"""What holds no weights of the network; some versions save its constants."""


def from_mmdet3d(name: str) -> str:
    """Our name of a parameter of mmdet3d's BEVFusion."""
    for alias, current in _ALIASES:
        if name.startswith(alias):
            return current + name.removeprefix(alias)
    return name


def constants(geometry: Geometry) -> dict[str, Tensor]:
    """mmdet3d's `view_transform.dx`, `bx`, `nx` (cell size, first centre, count along x, y, z) and `frustum`.

    `frustum` is [depth, row, column, 3]: pixel column, pixel row of the network's image, depth in metres.
    """
    low_x, low_y, _, high_x, high_y, _ = geometry.point_range
    cell = geometry.pool_cell
    low_z, high_z = geometry.zbound
    bounds = ((low_x, high_x, cell), (low_y, high_y, cell), (low_z, high_z, high_z - low_z))
    image = geometry.image
    rows, columns = image.feature_hw
    start, stop, step = geometry.depth_bins
    depth, row, column = torch.meshgrid(
        torch.arange(start, stop, step, dtype=torch.float32),
        torch.linspace(0, image.height - 1, rows),
        torch.linspace(0, image.width - 1, columns),
        indexing="ij",
    )
    return {
        "view_transform.dx": torch.tensor([step for _, _, step in bounds]),
        "view_transform.bx": torch.tensor([low + step / 2.0 for low, _, step in bounds]),
        "view_transform.nx": torch.tensor([round((high - low) / step) for low, high, step in bounds]),
        "view_transform.frustum": torch.stack((column, row, depth), -1),
    }


def take_constants(state: dict[str, Tensor], geometry: Geometry, source: str) -> tuple[str, ...]:
    """Removes what is no weight from `state`; returns the names.

    Raises:
        CheckpointError: the checkpoint was trained with another grid, image or depth range than `geometry`.
    """
    expected = constants(geometry)
    taken = [name for name in state if name in expected or name.startswith(LEFTOVERS)]
    for name in taken:
        found = state.pop(name)
        if name in expected and not _same(found, expected[name]):
            raise CheckpointError(
                f"{source} was trained with another view transform: {name} is {_brief(found)}",
                expected=_brief(expected[name]),
                remedy="give the configuration of that training with --mmdet3d-config, or another checkpoint",
            )
    return tuple(taken)


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found.double(), expected.double(), atol=1e-4)


def _brief(tensor: Tensor) -> str:
    values = "" if tensor.numel() > 3 else f" {[round(value, 4) for value in tensor.tolist()]}"
    if tensor.numel() > 3:
        values = f" from {tensor.min():g} to {tensor.max():g}"
    return f"{list(tensor.shape)}{values}"


def with_constants(state: Mapping[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
    """Our weights and what mmdet3d keeps beside them."""
    return {**state, **constants(geometry)}
