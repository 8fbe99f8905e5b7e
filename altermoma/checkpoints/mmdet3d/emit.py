"""Python source of a configuration, in mmdet3d's style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH = 100


def assignments(tables: Mapping[str, Any]) -> str:
    """`name = value` for every table."""
    return "\n".join(f"{name} = {literal(value)}" for name, value in tables.items()) + "\n"


def literal(value: Any, indent: int = 0) -> str:
    """A value of built-in types as source; what does not fit a line is broken up."""
    flat = _flat(value)
    if len(flat) + indent <= WIDTH or not isinstance(value, dict | list | tuple) or not value:
        return flat
    space = " " * (indent + 4)
    if isinstance(value, dict):
        opening, closing = ("dict(", ")") if _keywords(value) else ("{", "}")
        names = [f"{key}=" if _keywords(value) else f"{key!r}: " for key in value]
        items = [name + literal(item, indent + 4) for name, item in zip(names, value.values(), strict=True)]
    else:
        opening, closing = "[]" if isinstance(value, list) else "()"
        items = [literal(item, indent + 4) for item in value]
    body = "".join(f"{space}{item},\n" for item in items)
    return f"{opening}\n{body}{' ' * indent}{closing}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        if _keywords(value):
            return f"dict({', '.join(f'{key}={_flat(item)}' for key, item in value.items())})"
        return "{" + ", ".join(f"{key!r}: {_flat(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flat, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_flat, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _keywords(value: dict[str, Any]) -> bool:
    return all(key.isidentifier() for key in value)
