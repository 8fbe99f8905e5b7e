"""Builder options: which were asked for, from where, and how they are set on TensorRT 8.5 to 11, always by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from altermoma.deploy.manifest import Manifest
from altermoma.deploy.tensorrt_api import member, profile_sharing, required, strongly_typed, version_of
from altermoma.errors import EngineError
from altermoma.recipe import BuilderRecipe, Recipe, from_dict

_LIBRARIES = ("CUBLAS", "CUBLAS_LT", "CUDNN")
"""Tactic sources of 8.x that lie in other libraries."""

_LEVELS = {"ampere_plus": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How one stage is built. Everything here is part of the engine's key."""

    precision: Literal["fp32", "fp16", "int8"]
    sparsity: Literal["dense", "2:4"] = "dense"
    builder: BuilderRecipe = field(default_factory=BuilderRecipe)

    def on_dla(self, stage: str) -> bool:
        return stage in self.builder.dla_stages


def settled(*layers: BuilderRecipe) -> BuilderRecipe:
    """One set of options from several, the last first: a value that is not the default wins over those before it."""
    default = dataclasses.asdict(BuilderRecipe())
    found = dict(default)
    for layer in layers:
        found |= {key: value for key, value in dataclasses.asdict(layer).items() if value != default[key]}
    return BuilderRecipe(**found)


def checked(builder: BuilderRecipe) -> BuilderRecipe:
    """Gives the options back if every number is possible.

    Raises:
        RecipeError: names the key.
    """
    return Recipe(builder=builder).builder


def options_of(manifest: Manifest, precision: str, asked: BuilderRecipe | None = None) -> BuildOptions:
    """Options for a bundle: what is asked for here, else what its recipe said, else what its target says.

    Raises:
        RecipeError: the bundle carries a key that this version does not know.
    """
    target, recipe = (
        from_dict(BuilderRecipe, record.get("builder", {}), "builder.") for record in (manifest.target, manifest.recipe)
    )
    # fp32 has no sparse kernels; its engine of a 2:4 bundle is the yardstick.
    sparsity = manifest.recipe.get("engine", {}).get("sparsity", "dense") if precision != "fp32" else "dense"
    chosen = checked(settled(target, recipe, asked or BuilderRecipe()))
    return BuildOptions(precision=precision, sparsity=sparsity, builder=chosen)  # type: ignore[arg-type]


def built_for(manifest: Manifest) -> tuple[int, int] | None:
    """TensorRT version (major, minor) that the graphs were checked for; None where the bundle does not tell."""
    parts = str(manifest.target.get("tensorrt", "")).split(".")[:2]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdigit() for part in parts) else None


def too_old(trt: Any, manifest: Manifest) -> str:
    """Why this TensorRT must not build these graphs; empty if it may.

    A bundle is built by the version that its graphs were checked for, or a later one: earlier parsers take graphs of
    later ones and answer wrongly without a word (docs/targets.md).
    """
    wanted = built_for(manifest)
    if wanted is None or version_of(trt) >= wanted:
        return ""
    name = manifest.target.get("name", "its target")
    return (
        f"the graphs were checked for TensorRT {manifest.target['tensorrt']} ({name}), this is TensorRT"
        f" {trt.__version__}, which may read them wrongly without a word"
    )


def parser_flags(trt: Any, options: BuildOptions) -> tuple[Any, ...]:
    """Version-compatible plans of 8.6 need native instance normalisation, which is the default from 10 on."""
    flags = member(trt, "OnnxParserFlag")
    if not options.builder.version_compatible or flags is None:
        return ()
    return (flags.NATIVE_INSTANCENORM,)


def configure(trt: Any, config: Any, options: BuildOptions) -> None:
    """Sets everything but devices and profiles.

    Raises:
        EngineError: an option that this TensorRT lacks or refuses.
    """
    flags = trt.BuilderFlag
    if not options.builder.tf32:
        config.clear_flag(flags.TF32)
    if options.sparsity == "2:4":
        config.set_flag(flags.SPARSE_WEIGHTS)
    if not strongly_typed(trt):
        _permit_precision(trt, config, options)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    sharing = profile_sharing(trt)
    if sharing is not None:
        # Every shape that a frame's CUDA graphs were captured for has a context, all on one profile.
        config.set_preview_feature(sharing, True)
    if (8, 6) <= version_of(trt) < (10, 0):
        _leave_libraries(trt, config)
    _limit_memory(trt, config, options.builder)
    _set_compatibility(trt, config, options.builder)
    _set_refit(trt, config, options.builder)


def _leave_libraries(trt: Any, config: Any) -> None:
    """8.6 computes without cuBLAS and cuDNN (DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805 is on: NvInfer.h 8.6) and
    still loads both for plugins, of which there are none here, while they are tactic sources. Where they are not
    installed that would be an error. 8.5 computes with them, from 10 on both are off.

    Raises:
        EngineError: it does not let go of them.
    """
    libraries = sum(1 << int(member(trt.TacticSource, name)) for name in _LIBRARIES)
    kept = int(config.get_tactic_sources()) & ~libraries
    if not config.set_tactic_sources(kept):
        raise EngineError(
            f"TensorRT {trt.__version__} refuses tactic sources {kept:#b}",
            expected=f"a builder that does without {', '.join(_LIBRARIES)}",
            remedy="build on another version of TensorRT",
        )


def _permit_precision(trt: Any, config: Any, options: BuildOptions) -> None:
    """8.x: what the flags permit; `pin_precisions` gives OBEY_PRECISION_CONSTRAINTS something to enforce."""
    flags = trt.BuilderFlag
    if options.precision in {"fp16", "int8"}:
        config.set_flag(flags.FP16)
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
    if options.precision == "int8":
        config.set_flag(flags.INT8)


def relax_precision(trt: Any, config: Any) -> bool:
    """8.x: makes wishes of orders, so that layers without a kernel of their precision take another.

    Returns:
        Whether there were orders.
    """
    flags = trt.BuilderFlag
    if strongly_typed(trt) or not config.get_flag(flags.OBEY_PRECISION_CONSTRAINTS):
        return False
    config.clear_flag(flags.OBEY_PRECISION_CONSTRAINTS)
    config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)
    return True


def _limit_memory(trt: Any, config: Any, builder: BuilderRecipe) -> None:
    pools = trt.MemoryPoolType
    for name, size, remedy in (
        ("WORKSPACE", builder.workspace_mib << 20, ""),
        ("TACTIC_DRAM", builder.tactic_dram_mib << 20, _since("8.6")),
        ("TACTIC_SHARED_MEMORY", builder.tactic_shared_kib << 10, _since("10")),
    ):
        if size:
            config.set_memory_pool_limit(required(pools, name, trt, remedy), size)


def _set_compatibility(trt: Any, config: Any, builder: BuilderRecipe) -> None:
    if builder.optimization_level >= 0:
        required(config, "builder_optimization_level", trt, _since("8.6"))
        config.builder_optimization_level = builder.optimization_level
    if builder.version_compatible:
        config.set_flag(required(trt.BuilderFlag, "VERSION_COMPATIBLE", trt, _since("8.6")))
    if builder.hardware_compatible != "none":
        levels = required(trt, "HardwareCompatibilityLevel", trt, _since("8.6"))
        level = required(levels, _LEVELS[builder.hardware_compatible], trt, _since("10.9"))
        config.hardware_compatibility_level = level


def _set_refit(trt: Any, config: Any, builder: BuilderRecipe) -> None:
    """A stripped plan is refitted with the very weights that it was built with, unless others may come."""
    flags = trt.BuilderFlag
    if builder.refit:
        config.set_flag(flags.REFIT)
    if builder.strip:
        config.set_flag(required(flags, "STRIP_PLAN", trt, _since("10")))
        if not builder.refit:
            config.set_flag(required(flags, "REFIT_IDENTICAL", trt, _since("10")))


def _since(version: str) -> str:
    return f"build on TensorRT {version} or newer, or leave the option out"
