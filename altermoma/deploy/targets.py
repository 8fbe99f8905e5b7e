"""Target profiles: what a vehicle computer has. `deploy/<target>/target.toml`, which the wheel carries too."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from altermoma import toml
from altermoma.errors import RecipeError
from altermoma.recipe import BuilderRecipe, Recipe, from_dict

_SINCE: dict[str, tuple[int, int]] = {
    "optimization_level": (8, 6),
    "tactic_dram_mib": (8, 6),
    "version_compatible": (8, 6),
    "hardware_compatible": (8, 6),
    "tactic_shared_kib": (10, 0),
    "strip": (10, 0),
}
"""First TensorRT version that knows a builder option."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One machine and its software.

    Attributes:
        title: for people.
        platform: what it runs on.
        tensorrt: the version that it ships; graphs are checked for it. For a target that may run several (desktop)
            the oldest of them.
        compute_capability: of the GPU; empty where it varies.
        memory_gib: shared with the CPU on embedded machines; 0 where it varies.
        dla_cores: deep-learning accelerators that this TensorRT can use.
        precisions: what the GPU computes and this TensorRT builds.
        sparse: whether 2:4 kernels exist.
        channel_step: multiple that channel widths are rounded to for each precision.
        builder: how engines are built there, as `[builder]` of a recipe, whose values come first.
        notes: what a user must know.
    """

    title: str
    platform: Literal["jetson", "drive", "desktop", "any"]
    tensorrt: str
    compute_capability: str
    memory_gib: int
    dla_cores: int
    precisions: tuple[str, ...]
    sparse: bool
    channel_step: dict[str, int]
    builder: BuilderRecipe = field(default_factory=BuilderRecipe)
    notes: tuple[str, ...] = ()
    name: str = ""

    @property
    def tensorrt_version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.tensorrt.split("."))

    def step(self, precision: str) -> int:
        """Channel step for a precision.

        Raises:
            RecipeError: the target does not compute in it.
        """
        if precision not in self.precisions or precision not in self.channel_step:
            raise RecipeError(
                f"target {self.name} does not offer {precision}", expected="one of " + ", ".join(self.precisions)
            )
        return self.channel_step[precision]

    def require_builder(self, builder: BuilderRecipe) -> None:
        """Builder options that cannot be honoured there end a run before its work, not on the vehicle.

        Raises:
            RecipeError: names the option and the target.
        """
        version = self.tensorrt_version[:2]
        faults = [
            f"builder.{key} needs TensorRT {'.'.join(map(str, since))}"
            for key, since in _SINCE.items()
            if getattr(builder, key) != getattr(BuilderRecipe(), key) and version < since
        ]
        if builder.hardware_compatible == "same_compute_capability" and version < (10, 9):
            faults.append("builder.hardware_compatible = 'same_compute_capability' needs TensorRT 10.9")
        if builder.dla_stages and builder.dla_core >= self.dla_cores:
            faults.append(f"builder.dla_stages needs DLA core {builder.dla_core}, of {self.dla_cores}")
        if builder.version_compatible and self.platform == "drive":
            faults.append("builder.version_compatible is not supported on DRIVE")
        if faults:
            raise RecipeError(
                f"target {self.name} (TensorRT {self.tensorrt}) cannot do what is asked: {'; '.join(faults)}",
                expected="builder options of that machine",
                remedy="leave these keys out of [builder], or choose another target",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the manifest."""
        record = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


def target_folders() -> tuple[Path, ...]:
    """Where profiles are looked for: inside the installed wheel, then (editable installs) beside the package."""
    here = Path(__file__).resolve().parent
    return here / "targets", here.parents[1] / "deploy"


def target_names() -> tuple[str, ...]:
    """All known targets."""
    return tuple(sorted({p.parent.name for folder in target_folders() for p in folder.glob("*/target.toml")}))


def load_target(name: str) -> Target:
    """A target by name, or by the path of a profile of one's own.

    Raises:
        RecipeError: no such target, or a profile that is not valid; names the nearest.
    """
    if name.endswith(".toml"):
        return read_target(Path(name))
    for folder in target_folders():
        path = folder / name / "target.toml"
        if path.is_file():
            return read_target(path)
    near = difflib.get_close_matches(name, target_names(), n=1)
    raise RecipeError(
        f"no target {name!r}",
        expected="one of " + ", ".join(target_names()),
        remedy=f"did you mean {near[0]}?" if near else "choose one of these, or name a target.toml of your own",
    )


def read_target(path: Path) -> Target:
    """Reads one profile; its name is that of its folder."""
    try:
        record = toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no target profile at {path}", expected="a TOML file") from error
    except (UnicodeDecodeError, toml.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}", expected="a target profile") from error
    hints = typing.get_type_hints(Target)
    fields = {f.name: f for f in dataclasses.fields(Target) if f.name != "name"}
    unknown = sorted(set(record) - set(fields))
    missing = sorted(n for n, f in fields.items() if not _optional(f) and n not in record)
    if unknown or missing:
        faults = [f"unknown key {n}" for n in unknown] + [f"no key {n}" for n in missing]
        raise RecipeError(f"{path}: {', '.join(faults)}", expected="keys " + ", ".join(fields))
    values = {key: _value(path, key, value, hints[key]) for key, value in record.items()}
    return Target(name=path.parent.name, **values)


def _optional(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _value(path: Path, key: str, value: Any, hint: Any) -> Any:
    if hint is BuilderRecipe:
        return _builder(path, value)
    origin = typing.get_origin(hint)
    if origin is Literal:
        good = value in typing.get_args(hint)
    elif origin is tuple:
        good = isinstance(value, list) and all(isinstance(item, str) for item in value)
        value = tuple(value) if good else value
    elif isinstance(hint, types.GenericAlias):
        good = isinstance(value, dict) and all(type(item) is int and item > 0 for item in value.values())
    else:
        good = type(value) is hint
    if key == "tensorrt" and good:
        good = all(part.isdigit() for part in value.split("."))
    if not good:
        raise RecipeError(f"{path}: {key} = {value!r}", expected=str(hint).removeprefix("typing."))
    return value


def _builder(path: Path, value: Any) -> BuilderRecipe:
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: builder = {value!r}", expected="a table [builder]")
    try:
        return Recipe(builder=from_dict(BuilderRecipe, value, "builder.")).builder
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.found}", expected=error.expected, remedy=error.remedy) from error
