"""The two memory layouts of sparse convolution weights, told apart by shape.

spconv 2 (and ours): [out, kx, ky, kz, in]. spconv 1, mmcv and mit-han-lab: [kx, ky, kz, in, out]. Both keep the
kernel's axes in the order of the voxel coordinates, which is x, y, z in BEVFusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from altermoma.errors import CheckpointError

Layout = Literal["out-first", "out-last"]
_TO_OUT_FIRST = (4, 0, 1, 2, 3)
_TO_OUT_LAST = (1, 2, 3, 4, 0)


def layout_of(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Layout:
    """The layout of the sparse weights of a checkpoint: one file has one.

    A tensor whose channels equal its kernel fits both; the others decide. Where all fit both, the newer is taken.

    Args:
        state: the checkpoint under our names.
        expected: our tensors of these names; the kernel sizes count, the widths do not.

    Raises:
        CheckpointError: layouts that contradict each other.
    """
    found: dict[Layout, str] = {}
    for name in sparse_names(state, expected):
        kernel, shape = expected[name].shape[1:4], state[name].shape
        fits: list[Layout] = []
        if shape[1:4] == kernel:
            fits.append("out-first")
        if shape[:3] == kernel:
            fits.append("out-last")
        if len(fits) == 1:
            found.setdefault(fits[0], name)
    if len(found) > 1:
        raise CheckpointError(
            f"{found['out-first']} has its output channels first, {found['out-last']} has them last",
            expected="one layout of sparse convolution weights in a file",
            remedy="take the checkpoint as the training wrote it",
        )
    return next(iter(found), "out-first")


def to_out_first(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint with sparse weights laid out as ours."""
    if layout_of(state, expected) == "out-first":
        return dict(state)
    return _permuted(state, sparse_names(state, expected), _TO_OUT_FIRST)


def to_out_last(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights laid out as mit-han-lab stores them."""
    return _permuted(state, sparse_names(state, state), _TO_OUT_LAST)


def sparse_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Sparse convolution weights: the tensors with five axes."""
    return [name for name in state if name in expected and state[name].dim() == expected[name].dim() == 5]


def _permuted(state: Mapping[str, Tensor], names: list[str], axes: tuple[int, ...]) -> dict[str, Tensor]:
    sparse = set(names)
    return {name: tensor.permute(axes).contiguous() if name in sparse else tensor for name, tensor in state.items()}
