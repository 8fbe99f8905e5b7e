"""Recipes from TOML. Unknown keys and wrong types are errors that name the nearest right key or the allowed values."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from altermoma import toml
from altermoma.errors import RecipeError
from altermoma.recipe.sections import Recipe

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
