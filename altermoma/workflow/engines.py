"""The engine step: TensorRT engines where a GPU with TensorRT is, and a plain word where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from altermoma.deploy.bundle import copy_bundle
from altermoma.deploy.engine_report import engine_rows, require_sparse
from altermoma.deploy.tensorrt_config import options_of
from altermoma.deploy.tensorrt_engines import engines_here, why_not
from altermoma.errors import EngineError
from altermoma.recipe import EngineRecipe


def check_buildable(recipe: EngineRecipe) -> None:
    """Ends a run that requires engines before its first minute is spent, where they cannot be built.

    Raises:
        EngineError: no GPU or no TensorRT, with `build = "require"`.
    """
    reason = why_not() if recipe.build == "require" else ""
    if reason:
        raise EngineError(
            f"engines cannot be built here: {reason}",
            expected="an NVIDIA GPU and TensorRT 8.5 or newer, because --build require was given",
            remedy="leave --build at auto: the bundle is made here, and `altermoma build` builds it on the target",
        )


def environment(recipe: EngineRecipe) -> dict[str, str]:
    """What decides whether and how engines are built here."""
    return {"build": recipe.build, "obstacle": why_not() if recipe.build != "never" else "not asked for"}


def build_engines(recipe: EngineRecipe, exported: Path, bundle: Path) -> dict[str, Any]:
    """Copies the exported bundle and builds its engines, or records why there are none."""
    copied = copy_bundle(exported, bundle)
    built = engines_here(copied, options_of(copied.manifest, recipe.precision), build=recipe.build)
    state = built.manifest.engines
    require_sparse(state.built)
    return {
        "state": state.state,
        "reason": state.reason,
        "precisions": sorted({record.precision for record in state.built}),
        "engines": engine_rows(state.built, built.manifest.stages),
    }
