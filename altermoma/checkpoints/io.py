"""Weights on disk: safetensors with a small JSON record in the header. No pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from altermoma import __version__
from altermoma.checkpoints.widths import load_pruned
from altermoma.errors import CheckpointError
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import config_of
from altermoma.models.record import from_record, to_record
from altermoma.pruning.claims import claimed_masks
from altermoma.storage import write_bytes

FORMAT = "altermoma-checkpoint-1"
WEIGHTS = Path(__file__).parent / "weights"
PICKLED = frozenset({".pth", ".pt", ".ckpt", ".bin"})
"""Endings of files that other programs write with torch.save; see altermoma.checkpoints.foreign."""


def save_checkpoint(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes weights and a JSON record of how they were made, atomically. `metadata` holds what `describe` says.

    Widths are in the shapes: a pruned model is rebuilt from them (altermoma.models.rebuild).
    """
    if not isinstance(metadata.get("preset"), str):
        raise CheckpointError("checkpoint metadata names no preset", expected='metadata["preset"], a preset\'s name')
    header = {"format": FORMAT, "version": __version__, "metadata": json.dumps(dict(metadata))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(path, save(tensors, metadata=header))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and metadata of a checkpoint of ours; anything else is an error that says what it is."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", expected="a .safetensors file", remedy="check the path")
    if path.suffix in PICKLED:
        raise CheckpointError(
            f"{path.name} is a pickled checkpoint of another program",
            expected="a .safetensors checkpoint written by altermoma",
            remedy="convert it first: altermoma convert",
        )
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}",
            expected="a complete checkpoint",
            remedy="copy it again; a hash of the original tells whether it was cut off",
        ) from error
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {header.get('format')!r}",
            expected=FORMAT,
            remedy="use a checkpoint written by altermoma train or altermoma prune",
        )
    check_finite(path, state)
    return state, _metadata(path, header)


def describe(model: FusionModel, preset: str) -> dict[str, Any]:
    """What a checkpoint says of its model: the preset, and the configuration where the model is another of its kind."""
    if model.config == config_of(preset):
        return {"preset": preset}
    return {"preset": preset, "config": to_record(model.config)}


def config_from_checkpoint(path: Path) -> ModelConfig:
    """The configuration of a checkpoint of ours: the dense widths, and all that weights do not say."""
    return _config(load_checkpoint(path)[1])


def _config(metadata: Mapping[str, Any]) -> ModelConfig:
    return from_record(metadata["config"]) if "config" in metadata else config_of(str(metadata["preset"]))


def _metadata(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    try:
        record = json.loads(header["metadata"])
        named = isinstance(record["preset"], str)
    except (KeyError, TypeError, ValueError):
        named = False
    if not named:
        raise CheckpointError(
            f"{path} does not say which preset its weights are of",
            expected='JSON with "preset" under "metadata" in the safetensors header',
            remedy="write it again with altermoma.checkpoints.io.save_checkpoint",
        )
    return dict(record)


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError that names the first tensor with NaN or infinite values."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite values",
                expected="finite weights",
                remedy="take an earlier checkpoint of that training",
            )


def model_from_checkpoint(path: Path, *, preset: str | None = None) -> FusionModel:
    """The checkpoint's model at its widths, in eval mode. `preset`, where given, must be the checkpoint's.

    A .pth of mit-han-lab or mmdet3d does not say what it is: it is loaded as the preset, strictly.
    """
    if path.suffix in PICKLED:
        return _foreign_model(path, preset)
    state, metadata = load_checkpoint(path)
    found = str(metadata["preset"])
    if preset is not None and preset != found:
        raise CheckpointError(
            f"{path} holds a {found}",
            expected=f"a {preset}",
            remedy=f'set model = "{found}" in the recipe or name another checkpoint',
        )
    claimed_masks(state, metadata.get("sparsity"), path.name)
    model = FusionModel(_config(metadata))
    load_pruned(model, state, source=path.name)
    return model.eval()


def _foreign_model(path: Path, preset: str | None) -> FusionModel:
    from altermoma.checkpoints.convert import load_foreign

    if preset is None:
        raise CheckpointError(
            f"{path.name} does not say which model its weights are of",
            expected="a preset beside a checkpoint of another program",
            remedy="name the preset, or convert the checkpoint first: altermoma convert",
        )
    return load_foreign(path, config_of(preset), name=preset).model


def bundled_checkpoint(preset: str) -> Path:
    """The trained dense checkpoint that ships with the package."""
    path = WEIGHTS / f"{preset}.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint ships for {preset}",
            expected="one of " + (", ".join(sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))) or "none yet"),
            remedy="give your own with --checkpoint",
        )
    return path
