"""What a stage is given and what it gives, held against its contract before a runtime sees it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.manifest import StageRecord, TensorSpec
from altermoma.errors import EngineError

Arrays = dict[str, NDArray[Any]]
"""Tensors by name."""

_PREPARE = "prepare the frame with the bundle's geometry, as Pipeline.prepare does"

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))


class StageRunner(Protocol):
    """One stage ready to run, whatever the runtime."""

    record: StageRecord

    def run(self, inputs: Arrays) -> Arrays:
        """Takes at least the stage's inputs, by name; gives all its outputs."""
        ...


def check_inputs(record: StageRecord, inputs: Arrays, *, bounded: bool) -> Arrays:
    """Picks, checks and converts the inputs of one stage.

    Floats are converted between float32 and float16, since stages of one bundle may differ there; nothing else is.

    `bounded` says whether dynamic axes must also lie within the contract's range (engines are built for it).

    Returns:
        C-contiguous arrays by name, exactly the stage's inputs.

    Raises:
        EngineError: a missing input, another dtype, a wrong size, or two sizes for one axis.
    """
    missing = [spec.name for spec in record.inputs if spec.name not in inputs]
    if missing:
        raise EngineError(
            f"stage {record.name} was not given {', '.join(missing)}",
            expected="inputs " + ", ".join(spec.name for spec in record.inputs),
            remedy=_PREPARE,
        )
    axes: dict[str, int] = {}
    fed = {spec.name: _converted(record, spec, inputs[spec.name]) for spec in record.inputs}
    for spec in record.inputs:
        _check_shape(record, spec, fed[spec.name].shape, axes)
    if bounded:
        _check_bounds(record, axes)
    return fed


def _converted(record: StageRecord, spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    wanted = np.dtype(spec.dtype)
    if array.dtype != wanted and not (array.dtype in _FLOATS and wanted in _FLOATS):
        raise EngineError(
            f"stage {record.name}: input {spec.name} is {array.dtype}",
            expected=f"{spec.dtype} {list(spec.shape)}",
            remedy=_PREPARE,
        )
    return np.ascontiguousarray(array, dtype=wanted)


def _check_shape(record: StageRecord, spec: TensorSpec, shape: tuple[int, ...], axes: dict[str, int]) -> None:
    fits = len(shape) == len(spec.shape)
    for size, wanted in zip(shape, spec.shape, strict=False):
        fits = fits and size == (wanted if isinstance(wanted, int) else axes.setdefault(wanted, size))
    if not fits:
        met = ", ".join(f"{name} = {size}" for name, size in axes.items())
        raise EngineError(
            f"stage {record.name}: input {spec.name} has shape {list(shape)}" + (f" while {met}" if met else ""),
            expected=f"{spec.dtype} {list(spec.shape)}",
            remedy=_PREPARE,
        )


def _check_bounds(record: StageRecord, axes: dict[str, int]) -> None:
    for name, size in axes.items():
        bounds = record.axes[name]
        if not bounds.min <= size <= bounds.max:
            raise EngineError(
                f"stage {record.name}: axis {name} has size {size}",
                expected=f"{bounds.min} to {bounds.max}, which the engine was built for",
                remedy="raise the axis in the stage contract, export again and rebuild the engines",
            )
