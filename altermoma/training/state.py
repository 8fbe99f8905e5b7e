"""The resumable state of a training run: one safetensors file with a JSON record in its header. No pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altermoma.errors import CheckpointError
from altermoma.storage import write_bytes
from altermoma.training.precision import LossScale

STATE_FILE = "training_state.safetensors"
_SCHEMA = "altermoma.training-state/1"


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hex digest of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(kw_only=True)
class AveragedWeights:
    """Exponential moving average of a model's floating parameters and buffers; the decay grows from 0.1 early on."""

    decay: float
    tensors: dict[str, Tensor]

    @staticmethod
    def of(model: nn.Module, decay: float) -> AveragedWeights:
        return AveragedWeights(
            decay=decay, tensors={name: t.detach().clone() for name, t in model.state_dict().items()}
        )

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after `step` (0, 1, ...)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.lerp_(tensor.detach(), 1 - decay)
            else:
                average.copy_(tensor)


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All that a run changes, and that a resumed run needs; written to and read from one file.

    Attributes:
        fingerprint: of what the run was asked for.
    """

    fingerprint: str
    model: nn.Module
    optimiser: torch.optim.Optimizer
    averaged: AveragedWeights | None
    scale: LossScale | None

    def save(self, path: Path, step: int) -> None:
        """Writes the state after `step` steps, whole or not at all."""
        from safetensors.torch import save

        tensors = {f"model/{name}": t for name, t in self.model.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"averaged/{name}": t for name, t in self.averaged.tensors.items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"optimiser/{key}/{name}": t for key, t in self.optimiser.state.get(parameter, {}).items()}
        record: dict[str, Any] = {"schema": _SCHEMA, "step": step, "fingerprint": self.fingerprint}
        if self.scale is not None:
            record["loss_scale"] = dataclasses.asdict(self.scale)
        # Clones: safetensors refuses tensors that share memory.
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        write_bytes(path, save(plain, metadata={"record": json.dumps(record)}))

    def load(self, path: Path) -> int:
        """Restores a saved state in place and returns the number of steps done; 0 where there is no state.

        Raises:
            CheckpointError: the file is broken, or belongs to another run.
        """
        if not path.is_file():
            return 0
        record, tensors = _read(path)
        if record.get("fingerprint") != self.fingerprint:
            raise CheckpointError(
                f"{path} belongs to another run: other recipe, data, model or initial weights",
                expected=f"fingerprint {self.fingerprint}, found {record.get('fingerprint')}",
                remedy="choose another output folder, or delete the file to start over",
            )
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "optimiser": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            groups[kind][name] = tensor
        self.model.load_state_dict(groups["model"])
        if self.averaged is not None:
            for name, tensor in self.averaged.tensors.items():
                tensor.copy_(groups["averaged"][name])
        if self.scale is not None:
            self.scale.value, self.scale.good = record["loss_scale"]["value"], record["loss_scale"]["good"]
        self._load_optimiser(groups["optimiser"])
        return int(record["step"])

    def _load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        self.optimiser.state.clear()
        for key, tensor in tensors.items():
            slot, _, name = key.partition("/")
            parameter = parameters[name]
            # AdamW keeps its step counter on the host.
            self.optimiser.state[parameter][slot] = tensor if slot == "step" else tensor.to(parameter.device)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            record = json.loads((stream.metadata() or {})["record"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a training state: {error}",
            expected=f"a file of schema {_SCHEMA}",
            remedy="delete it to start the training over",
        ) from error
    if record.get("schema") != _SCHEMA:
        raise CheckpointError(
            f"{path} has schema {record.get('schema')}",
            expected=_SCHEMA,
            remedy="finish the run with the version that began it, or delete the file to start over",
        )
    return record, tensors
