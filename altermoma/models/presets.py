"""The models one can ask for by name."""

from __future__ import annotations

import difflib

from altermoma.errors import RecipeError
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel

PRESETS: dict[str, ModelConfig] = {"bevfusion-tiny": ModelConfig()}


def config_of(name: str) -> ModelConfig:
    """The configuration of a preset; an unknown name is an error that lists the known ones."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        raise RecipeError(
            f"unknown model {name!r}",
            expected="one of " + ", ".join(PRESETS),
            remedy=f"did you mean {near[0]!r}?" if near else "choose one of these presets",
        )
    return PRESETS[name]


def build(name: str) -> FusionModel:
    """A preset with random weights."""
    return FusionModel(config_of(name))
