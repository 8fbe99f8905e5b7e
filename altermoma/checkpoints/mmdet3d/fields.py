"""Reading a foreign configuration so that nothing is overlooked: a field is used, known to be harmless, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

from altermoma.errors import UnsupportedError

_REQUIRED = object()


class Fields:
    """One table of a configuration. As a context manager it refuses, on leaving, fields that were not asked for.

    Args:
        values: the table.
        path: where it is, such as `model.img_neck`, for messages.
    """

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = values
        self._path = path
        self._read: set[str] = set()

    def __enter__(self) -> Fields:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unread = [key for key in self._values if key not in self._read]
        if kind is None and unread:
            self.refuse(unread[0], "no such field, or its default")

    def name(self, key: str) -> str:
        """The full name of a field."""
        return f"{self._path}.{key}" if self._path else key

    def has(self, key: str) -> bool:
        """Whether the field is there and not None."""
        return self._values.get(key) is not None

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of a field, tuples as lists."""
        self._read.add(key)
        if key not in self._values:
            if default is _REQUIRED:
                raise UnsupportedError(
                    f"{self.name(key)} is missing",
                    expected="a BEVFusion of camera and LiDAR",
                    remedy="give the configuration that has both; docs/checkpoints.md lists what is read",
                )
            return plain(default)
        return plain(self._values[key])

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        """A whole number."""
        value = self.get(key, default)
        if type(value) is not int:
            self.refuse(key, "a whole number")
        return value

    def numbers(self, key: str, count: int | None = None, default: Any = _REQUIRED) -> tuple[float, ...]:
        """A list of numbers."""
        value = self.get(key, default)
        fits = isinstance(value, list) and all(type(item) in (int, float) for item in value)
        if not fits or (count is not None and len(value) != count):
            self.refuse(key, "a list of numbers" if count is None else f"a list of {count} numbers")
        return tuple(float(item) for item in value)

    def integers(self, key: str, count: int | None = None, default: Any = _REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers."""
        values = self.numbers(key, count, default)
        if any(value != int(value) for value in values):
            self.refuse(key, "whole numbers")
        return tuple(int(value) for value in values)

    def must(self, key: str, wanted: Any, default: Any = _REQUIRED) -> None:
        """Refuses any value but `wanted`; `default` is what mmdet3d takes where the field is not given."""
        if not _equal(self.get(key, default), plain(wanted)):
            self.refuse(key, repr(wanted))

    def kind(self, *wanted: str) -> str:
        """The `type` of this table without the registry before it, one of `wanted`."""
        found = str(self.get("type")).removeprefix("mmdet.").removeprefix("mmdet3d.")
        if found not in wanted:
            self.refuse("type", " or ".join(wanted))
        return found

    def skip(self, *keys: str) -> None:
        """Fields that change training alone, or nothing that is computed."""
        self._read.update(keys)

    def section(self, key: str) -> Fields:
        """A table inside this one."""
        value = self.get(key)
        if not isinstance(value, dict):
            self.refuse(key, "a table")
        return Fields(value, self.name(key))

    def norm(self, key: str, eps: float, *kinds: str) -> None:
        """Batch norm of one of the `kinds`, with this epsilon."""
        with self.section(key) as norm:
            norm.kind(*kinds)
            norm.must("eps", eps, default=1e-5)
            norm.skip("momentum", "requires_grad")

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Ends with an error that names the field."""
        found = f"= {_short(self._values[key])}" if key in self._values else "is not given"
        raise UnsupportedError(
            f"{self.name(key)} {found}",
            expected=expected,
            remedy="altermoma cannot represent this; docs/checkpoints.md lists what it can",
        )


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(_equal(a, b) for a, b in zip(found, wanted, strict=True))
    if isinstance(found, float | int) and isinstance(wanted, float | int) and not isinstance(wanted, bool):
        return abs(found - wanted) <= 1e-6 * max(1.0, abs(wanted))
    return bool(found == wanted)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def plain(config: Any) -> Any:
    """mmengine's dictionaries and tuples as built-in ones."""
    if isinstance(config, dict):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    return config
