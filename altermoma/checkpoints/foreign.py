"""Checkpoints of other programs: tensors and text out of a .pth, and no code.

A .pth is a pickle, and a pickle can run anything. It is read with torch's restricted unpickler, which builds tensors
and plain containers only. A training checkpoint of mmengine also holds its log as objects of mmengine and numpy: these
become inert stand-ins, so that neither library is needed and none of their code runs.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altermoma.checkpoints.io import check_finite
from altermoma.errors import CheckpointError
from altermoma.storage import atomic_path


class _Inert:
    """Takes the place of an object that no weight depends on."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _inert(*_: Any) -> _Inert:
    return _Inert()


_INERT_CLASSES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmcv.runner.log_buffer.LogBuffer",
    "mmengine.config.config.ConfigDict",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int32", "Int64", "Bool", "Str", "Bytes")),
)
# getattr fetches HistoryBuffer's statistics methods, encode the bytes of a numpy array: both only named, never called.
_INERT_FUNCTIONS = (
    "builtins.getattr",
    "__builtin__.getattr",
    "_codecs.encode",
    *(f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")),
)
_STAND_INS: list[Any] = [(_Inert, name) for name in _INERT_CLASSES]
_STAND_INS += [(_inert, name) for name in _INERT_FUNCTIONS]

_REFUSED = re.compile(r"GLOBAL\s+([\w.]+)")


@dataclass(frozen=True, kw_only=True)
class ForeignCheckpoint:
    """Tensors under the names that the file gives them.

    Attributes:
        versions: of each module that wrote one into the file (torch's `_metadata`).
    """

    path: Path
    state: Mapping[str, Tensor]
    versions: Mapping[str, int] = field(default_factory=dict)


def read_foreign(path: Path) -> ForeignCheckpoint:
    """Reads a .pth of mmengine, mmcv or plain torch.save.

    Raises:
        CheckpointError: no such file, cut off, no weights in it, weights that are not finite, or objects other than
            tensors and plain containers, which could run code.
    """
    record = _load(path)
    state = record.get("state_dict", record) if isinstance(record, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(
            f"{path.name} holds no weights: {_outline(record)}",
            expected="a state_dict, alone or under the key state_dict",
            remedy="name the checkpoint of the detector, not that of an optimiser or a logger",
        )
    tensors = {_bare(str(name)): tensor for name, tensor in state.items()}
    check_finite(path, tensors)
    metadata = getattr(state, "_metadata", {})
    versions = {_bare(name): entry["version"] for name, entry in metadata.items() if "version" in entry}
    return ForeignCheckpoint(path=path, state=tensors, versions=versions)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", expected="a .pth file", remedy="check the path")
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            # Of plain pickles: what torch warns of, it refuses a line later.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unpickling_error(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise _broken(path, error) from error


def _unpickling_error(path: Path, error: Exception) -> CheckpointError:
    refused = _REFUSED.search(str(error))
    if refused is None:
        return _broken(path, error)
    return CheckpointError(
        f"{path.name} holds more than weights: loading it would call {refused.group(1)}",
        expected="tensors, numbers and text",
        remedy="where you trust its source, save its weights alone, in the environment that it comes from: "
        "torch.save({'state_dict': torch.load(path, weights_only=False)['state_dict']}, new_path)",
    )


def _broken(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return CheckpointError(
        f"{path.name} is not a readable torch checkpoint: {reason}",
        expected="a complete file written by torch.save",
        remedy="copy it again; a hash of the original tells whether it was cut off",
    )


def _outline(record: Any) -> str:
    if isinstance(record, Mapping):
        names = ", ".join(str(name) for name in list(record)[:6])
        return f"its entries are {names}" if names else "it is empty"
    return f"it is a {type(record).__name__}"


def _bare(name: str) -> str:
    """The name without what data parallel training puts before it."""
    return name.removeprefix("module.")


def save_foreign(path: Path, state: Mapping[str, Tensor], versions: Mapping[str, int]) -> None:
    """Writes `{"state_dict": ...}` as mmengine reads it, with the versions in `_metadata`, atomically."""
    ordered = OrderedDict((name, tensor.detach().cpu().contiguous()) for name, tensor in state.items())
    ordered._metadata = OrderedDict((name, {"version": version}) for name, version in versions.items())  # type: ignore[attr-defined]
    with atomic_path(path) as draft:
        torch.save({"meta": {}, "state_dict": ordered}, draft)
