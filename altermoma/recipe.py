"""Recipes: everything a run is asked to do, as frozen dataclasses read from TOML.

Unknown keys, wrong types and impossible values are errors that name the nearest right key or the allowed values.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from altermoma import toml
from altermoma.errors import RecipeError

Precision = Literal["fp32", "fp16", "int8"]
Sparsity = Literal["dense", "2:4"]
Partition = Literal["camera", "lidar", "fusion"]


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where frames come from. An empty root means the synthetic world, made on first use and cached.

    Attributes:
        map_masks: folder with the truth of the map head, for models that have one (altermoma.data.map_masks).
    """

    root: str = ""
    version: str = "v1.0-mini"
    train_split: str = "mini_train"
    val_split: str = "mini_val"
    sweeps: int = 3
    map_masks: str = ""
    synth_scenes: int = 10
    synth_seed: int = 7


@dataclass(frozen=True, kw_only=True)
class PruneRecipe:
    """Structured AlterMOMA. `amount` is the share removed of `budget`; scores are those of paper eq. 11-13.

    Attributes:
        channel_step: widths of dense layers are multiples of this: below, convolution kernels pad instead. 0 takes
            the step of the engine's target and precision (deploy/<target>/target.toml).
        lidar_channel_step: the same for the sparse encoder, whose gathered rows are rows of matrices.
        min_channels: least width, rounded up to the step.
    """

    budget: Literal["flops", "channels", "params"] = "flops"
    amount: float = 0.3
    scope: tuple[Partition, ...] = ("camera", "lidar", "fusion")
    channel_step: int = 0
    lidar_channel_step: int = 8
    min_channels: int = 8
    alpha: float = 1.0
    beta: float = 1.0
    score_batches: int = 8
    reactivation_batches: int = 8
    reri_batches: int = 4
    reactivation_lr: float = 1e-3
    batch_size: int = 2
    aggregation: Literal["channel", "element"] = "channel"
    selection: Literal["threshold", "greedy"] = "threshold"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """One training or fine-tuning run. `steps` counts optimiser steps.

    Attributes:
        warmup_share: share of the steps during which the learning rate rises.
        ema_decay: of the averaged weights, which are what training returns; 0 returns the last weights.
        depth_weight: of the auxiliary loss that teaches the camera branch its depth from LiDAR returns (as BEVDepth);
            without it a tiny camera branch does not find objects in thousands of steps.
        distill_weight: of the loss that holds a pruned model against the dense one (altermoma-export only).
        match_radius: metres; a true box is matched to no query farther away. 0 sets no limit, as TransFusion.
        checkpoint_every: steps between two saved states; a kill loses at most so many.
    """

    steps: int = 300
    batch_size: int = 2
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    grad_clip: float = 10.0
    schedule: Literal["cosine", "one-cycle"] = "one-cycle"
    augment: bool = True
    masked: Literal["none", "camera", "lidar"] = "none"
    ema_decay: float = 0.0
    match_radius: float = 4.0
    depth_weight: float = 0.5
    distill_weight: float = 1.0
    checkpoint_every: int = 50
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ExportRecipe:
    """Tolerances are the largest absolute difference to torch over the largest torch magnitude of that output.

    `..._tolerance` bounds each stage fed with torch's inputs, `..._frame_tolerance` the stages in a chain, where
    differences add up.
    """

    opset: int = 17
    fp32_tolerance: float = 1e-4
    fp32_frame_tolerance: float = 1e-3
    fp16_tolerance: float = 5e-2
    fp16_frame_tolerance: float = 5e-2


@dataclass(frozen=True, kw_only=True)
class ParityRecipe:
    """How far an engine's final boxes may be from torch's over the validation split.

    Attributes:
        fp32_boxes: every box of torch is found again, none farther off than this in any number (m, rad, m/s).
        fp16_map: largest difference of mAP, 0 to 1; rounding moves single boxes more than their mean worth.
        beyond: what becomes of a run that is beyond: "error" ends it without a bundle, "note" makes the bundle and says
            so in the summary.
    """

    fp32_boxes: float = 1e-3
    fp16_map: float = 2e-3
    beyond: Literal["error", "note"] = "error"


@dataclass(frozen=True, kw_only=True)
class EngineRecipe:
    precision: Precision = "fp16"
    sparsity: Sparsity = "dense"
    target: str = "generic"
    build: Literal["auto", "require", "never"] = "auto"


@dataclass(frozen=True, kw_only=True)
class BenchRecipe:
    frames: int = 8
    rounds: int = 5
    warmup: int = 1
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run of `altermoma-export`."""

    name: str = "bevfusion-tiny"
    model: str = "bevfusion-tiny"
    checkpoint: str = ""
    data: DataRecipe = field(default_factory=DataRecipe)
    prune: PruneRecipe = field(default_factory=PruneRecipe)
    finetune: TrainRecipe = field(default_factory=TrainRecipe)
    export: ExportRecipe = field(default_factory=ExportRecipe)
    parity: ParityRecipe = field(default_factory=ParityRecipe)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    bench: BenchRecipe = field(default_factory=BenchRecipe)

    def __post_init__(self) -> None:
        _check_values(self)

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())


def at_full_size(recipe: Recipe) -> Recipe:
    """The recipe with what a detector of full size, on six pictures of 256 x 704, asks of two cores and 16 GiB.

    Scores take ten minutes and 9 GiB with two frames, one at a time; the defaults would take an hour and more memory.
    Fine-tuning on a CPU would take half a day: it is left to mmdet3d (docs/checkpoints.md).
    """
    prune = dataclasses.replace(recipe.prune, score_batches=2, reactivation_batches=2, reri_batches=1, batch_size=1)
    return dataclasses.replace(recipe, prune=prune, finetune=dataclasses.replace(recipe.finetune, steps=0))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class _Range:
    """Numbers that are allowed: from `low` to `high`, the ends included unless said otherwise."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, number: float) -> bool:
        fine = self.low < number if self.above else self.low <= number
        return fine and (number < self.high if self.below else number <= self.high) and math.isfinite(number)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        ends = [f"{'above' if self.above else 'at least'} {self.low:g}"] if math.isfinite(self.low) else []
        ends += [f"{'below' if self.below else 'at most'} {self.high:g}"] if math.isfinite(self.high) else []
        return " and ".join(ends) or "a finite number"


_ANY, _COUNT, _NATURAL = _Range(), _Range(low=1), _Range(low=0)
_POSITIVE, _PART = _Range(low=0, above=True), _Range(low=0, high=1, below=True)
_RANGES: dict[str, dict[str, _Range]] = {
    "data": {"sweeps": _COUNT, "synth_scenes": _COUNT, "synth_seed": _NATURAL},
    "prune": {
        "amount": _PART,
        "channel_step": _NATURAL,
        "lidar_channel_step": _COUNT,
        "min_channels": _COUNT,
        "alpha": _ANY,
        "beta": _ANY,
        "score_batches": _COUNT,
        "reactivation_batches": _COUNT,
        "reri_batches": _COUNT,
        "reactivation_lr": _NATURAL,
        "batch_size": _COUNT,
        "seed": _NATURAL,
    },
    "finetune": {
        "steps": _NATURAL,
        "batch_size": _COUNT,
        "lr": _POSITIVE,
        "weight_decay": _NATURAL,
        "warmup_share": _Range(low=0, high=1),
        "grad_clip": _POSITIVE,
        "ema_decay": _PART,
        "match_radius": _NATURAL,
        "depth_weight": _NATURAL,
        "distill_weight": _NATURAL,
        "checkpoint_every": _COUNT,
        "seed": _NATURAL,
    },
    "export": {
        "opset": _Range(low=17, high=17),
        **dict.fromkeys(
            ("fp32_tolerance", "fp32_frame_tolerance", "fp16_tolerance", "fp16_frame_tolerance"), _POSITIVE
        ),
    },
    "parity": {"fp32_boxes": _POSITIVE, "fp16_map": _POSITIVE},
    "bench": {"frames": _COUNT, "rounds": _COUNT, "warmup": _NATURAL, "threads": _COUNT},
}
"""Every number of a recipe. Checked before any work, so that no run ends in its tenth minute over a minus sign."""


def _check_values(recipe: Recipe) -> None:
    for section, ranges in _RANGES.items():
        values = getattr(recipe, section)
        for key, allowed in ranges.items():
            number = getattr(values, key)
            if not allowed.holds(number):
                default = getattr(type(values)(), key)
                remedy = f"change it, or leave it out: {default} is the default"
                raise RecipeError(f"{section}.{key} = {number}", expected=str(allowed), remedy=remedy)
    if not recipe.prune.scope or len(set(recipe.prune.scope)) < len(recipe.prune.scope):
        raise RecipeError(
            f"prune.scope = {list(recipe.prune.scope)}",
            expected="at least one partition, each once",
            remedy="name camera, lidar or fusion; a prune.amount of 0 prunes nothing",
        )
    for key, name in (("name", recipe.name), ("data.version", recipe.data.version)):
        if not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise RecipeError(
                f"{key} = {name!r}",
                expected="the name of a folder, not a path",
                remedy="use letters, digits and dashes",
            )


T = TypeVar("T")

_PLAIN_WORDS = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


def from_dict(cls: type[T], record: dict[str, Any], path: str = "") -> T:
    """Builds a frozen recipe dataclass, checking every key and type below `path`."""
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in record:
        if key not in fields:
            near = difflib.get_close_matches(key, sorted(fields), n=1)
            remedy = f"did you mean {path}{near[0]}?" if near else f"remove it; known keys: {', '.join(sorted(fields))}"
            raise RecipeError(f"unknown recipe key {path}{key}", expected="a known key", remedy=remedy)
    return cls(**{key: _convert(hints[key], value, f"{path}{key}") for key, value in record.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise RecipeError(
                f"{path} = {value!r}", expected=f"a table [{path}]", remedy="put its keys on lines below that heading"
            )
        return from_dict(hint, value, f"{path}.")
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            allowed = ", ".join(map(repr, typing.get_args(hint)))
            raise RecipeError(f"{path} = {value!r}", expected=f"one of {allowed}", remedy="choose one of these")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(
                f"{path} = {value!r}",
                expected="a list",
                remedy=f'put the values in brackets: {path.rpartition(".")[2]} = ["..."]',
            )
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, item, f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(hint, types.UnionType):
        raise TypeError(f"recipe field {path} must have one type")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise RecipeError(
            f"{path} = {value!r} ({type(value).__name__})",
            expected=_PLAIN_WORDS[hint],
            remedy="change the value in the recipe, or remove the line to take the default",
        )
    return value


def parse(text: str, source: str = "recipe") -> Recipe:
    """Reads a recipe from TOML text; `source` names it in errors."""
    try:
        record = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise RecipeError(
            f"{source} is not valid TOML: {error}", expected="a TOML file", remedy="repair the line that is named"
        ) from error
    return from_dict(Recipe, record)


def load(path: Path) -> Recipe:
    """Reads a recipe file."""
    if not path.is_file():
        raise RecipeError(f"no recipe at {path}", expected="a TOML file", remedy="README shows a recipe")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read {path}: {error}", expected="a TOML file in UTF-8", remedy="check what the file is"
        ) from error
    return parse(text, str(path))
