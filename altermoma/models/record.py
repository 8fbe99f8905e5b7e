"""A model's configuration as plain data, for checkpoints of models that are no preset."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from altermoma.errors import CheckpointError
from altermoma.models.config import ModelConfig


def to_record(config: ModelConfig) -> dict[str, Any]:
    """Tables, lists, numbers and text: what JSON holds."""
    return dataclasses.asdict(config)


def from_record(record: Any) -> ModelConfig:
    """The inverse of `to_record`.

    Raises:
        CheckpointError: fields that a model of this version does not have.
    """
    config: ModelConfig = _build(ModelConfig, record, "config")
    return config


def _build(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        names = {field.name for field in dataclasses.fields(hint)}
        if not isinstance(value, dict) or not value.keys() <= names:
            raise _foreign(path, value)
        hints = typing.get_type_hints(hint)
        return hint(**{key: _build(hints[key], item, f"{path}.{key}") for key, item in value.items()})
    if isinstance(hint, types.UnionType):
        return _build(_member(hint, value, path), value, path)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        return tuple(_build(inner[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    return value


def _member(union: types.UnionType, value: Any, path: str) -> Any:
    """The type of a union that has exactly the fields of `value`."""
    for member in typing.get_args(union):
        if value is None and member is types.NoneType:
            return member
        if isinstance(value, dict) and dataclasses.is_dataclass(member):
            if {field.name for field in dataclasses.fields(member)} == value.keys():
                return member
        elif isinstance(member, type) and type(value) is member:
            return member
    raise _foreign(path, value)


def _foreign(path: str, value: Any) -> CheckpointError:
    shown = ", ".join(value) if isinstance(value, dict) else repr(value)
    return CheckpointError(
        f"{path} of the checkpoint is {shown}",
        expected="a model that this version of altermoma has",
        remedy="use the version that wrote the checkpoint",
    )
