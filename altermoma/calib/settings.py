"""How a data set is calibrated: `calib/<dataset>.toml`, which the wheel carries too."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from altermoma import toml
from altermoma.calib.calibrators import Method
from altermoma.errors import RecipeError
from altermoma.recipe import from_dict

SCHEMA = 1
StageMethod = Literal["", "minmax", "percentile", "entropy", "mse"]


@dataclass(frozen=True, kw_only=True)
class StageMethods:
    """The calibrator of single stages, where it is not the recipe's."""

    camera: StageMethod = ""
    view: StageMethod = ""
    lidar: StageMethod = ""
    fusion: StageMethod = ""
    head: StageMethod = ""


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """A calibration recipe.

    Attributes:
        dataset: what it is for.
        frames: that are run; `pool` frames spread over the split are read to choose them from.
        method: calibrator of activations (`calibrators.calibrate`); `percentile` is for the one of that name.
        keep: patterns searched in the names of layer groups (`products.group_of`); these stay out of int8.
        number: int8, or fp8 (E4M3) for targets that have it.
    """

    schema: int = SCHEMA
    dataset: str = ""
    frames: int = 32
    pool: int = 160
    seed: int = 0
    method: Method = "percentile"
    percentile: float = 99.99
    methods: StageMethods = field(default_factory=StageMethods)
    keep: tuple[str, ...] = ()
    number: Literal["int8", "fp8"] = "int8"

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise RecipeError(f"calibration recipe of schema {self.schema}", expected=f"schema = {SCHEMA}")
        if not 1 <= self.frames <= self.pool:
            raise RecipeError(f"frames = {self.frames}, pool = {self.pool}", expected="1 <= frames <= pool")
        if not 50.0 < self.percentile <= 100.0:
            raise RecipeError(f"percentile = {self.percentile:g}", expected="above 50 and at most 100")
        for pattern in self.keep:
            try:
                re.compile(pattern)
            except re.error as error:
                raise RecipeError(f"keep: {pattern!r}: {error}", expected="a regular expression") from error

    def method_of(self, stage: str) -> Method:
        chosen: Method | Literal[""] = getattr(self.methods, stage, "")
        return chosen or self.method

    def keeps(self, group: str) -> bool:
        """Whether a layer group stays out of int8."""
        return any(re.search(pattern, group) for pattern in self.keep)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able and TOML-able."""
        record = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}


def settings_folders() -> tuple[Path, ...]:
    """Where recipes are looked for: inside the installed wheel, then (editable installs) beside the package."""
    here = Path(__file__).resolve().parent
    return here / "recipes", here.parents[1] / "calib"


def load_settings(name: str) -> CalibrationSettings:
    """A calibration recipe by the name of its data set, or by the path of a file of one's own.

    Raises:
        RecipeError: no such recipe, or one that cannot be honoured.
    """
    if name.endswith(".toml"):
        return read_settings(Path(name))
    known = sorted({path.stem for folder in settings_folders() for path in folder.glob("*.toml")})
    for folder in settings_folders():
        if (folder / f"{name}.toml").is_file():
            return read_settings(folder / f"{name}.toml")
    near = difflib.get_close_matches(name, known, n=1)
    raise RecipeError(
        f"no calibration recipe {name!r}",
        expected="one of " + ", ".join(known),
        remedy=f"did you mean {near[0]}?" if near else "choose one of these, or name a .toml file of your own",
    )


def read_settings(path: Path) -> CalibrationSettings:
    """Reads a recipe file."""
    try:
        record = toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no calibration recipe at {path}", expected="a TOML file") from error
    except (UnicodeDecodeError, toml.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}", expected="a calibration recipe") from error
    return from_dict(CalibrationSettings, record, "calibration recipe: ")
