"""TensorRT 8.5 to 11 behind one face: which names exist is asked, never assumed.

Enum values moved between versions (bit 1 of the network flags is STRONGLY_TYPED on 10 and PREFER_JIT on 11), so
members are always looked up by name.
"""

from __future__ import annotations

import re
import weakref
from typing import Any

from altermoma.errors import EngineError, UnsupportedError

OLDEST = (8, 5)

NUMPY_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT data types that numpy has, by name."""

SPARSITY = "(Sparsity)"
"""What a builder's messages on sparse kernels begin with."""


def import_tensorrt() -> Any:
    """The tensorrt module; importing is safe without a GPU.

    Raises:
        UnsupportedError: not installed, or older than 8.5.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise UnsupportedError(
            f"tensorrt cannot be imported: {error}",
            expected="TensorRT 8.5 or newer",
            remedy="it comes with JetPack and DRIVE OS; elsewhere: pip install 'altermoma[gpu]'",
        ) from error
    if version_of(tensorrt) < OLDEST:
        raise UnsupportedError(f"TensorRT {tensorrt.__version__}", expected="8.5 or newer")
    return tensorrt


def version_of(trt: Any) -> tuple[int, int]:
    """(major, minor)."""
    found = re.match(r"(\d+)\.(\d+)", str(trt.__version__))
    if not found:
        raise EngineError(f"TensorRT calls itself version {trt.__version__!r}", expected="a number such as 10.3.0")
    return int(found[1]), int(found[2])


def strongly_typed(trt: Any) -> bool:
    """Whether precision comes from the graph alone (10 and later) or is a permission to the builder (8.x)."""
    return version_of(trt) >= (10, 0)


def profile_sharing(trt: Any) -> Any:
    """The preview feature of 8.6 that lets contexts share an optimisation profile; None where there is none to ask."""
    return member(member(trt, "PreviewFeature"), "PROFILE_SHARING_0806") if version_of(trt) < (10, 0) else None


def shares_profiles(trt: Any) -> bool:
    """Whether several contexts of one engine may live on its one optimisation profile: never on 8.5."""
    return version_of(trt) >= (10, 0) or profile_sharing(trt) is not None


def member(owner: Any, name: str) -> Any:
    """An enum member or attribute by name, None where this version lacks it."""
    return getattr(owner, name, None)


def required(owner: Any, name: str, trt: Any, remedy: str) -> Any:
    """An enum member by name.

    Raises:
        EngineError: this TensorRT lacks it.
    """
    found = member(owner, name)
    if found is None:
        raise EngineError(f"TensorRT {trt.__version__} has no {name}", remedy=remedy)
    return found


def network_flags(trt: Any) -> int:
    """Bits for `create_network`: explicit batch where it is still a choice, strong typing where it is one."""
    names = ["EXPLICIT_BATCH"] if version_of(trt) < (10, 0) else ["STRONGLY_TYPED"]
    found = [member(trt.NetworkDefinitionCreationFlag, name) for name in names]
    return sum(1 << int(flag) for flag in found if flag is not None)


def numpy_name(trt: Any, dtype: Any) -> str:
    """numpy name of a TensorRT data type.

    Raises:
        EngineError: a type that numpy does not have.
    """
    for name, numpy in NUMPY_NAMES.items():
        if member(trt.DataType, name) == dtype:
            return numpy
    raise EngineError(f"an engine tensor has type {dtype}", expected="one of " + ", ".join(NUMPY_NAMES))


class Messages(list[str]):
    """What TensorRT says, from the time that a logger is asked for on."""


class _Process:
    """TensorRT keeps the first logger that it is given, for everything in the process, and writes to it for as long:
    every engine having one of its own, most would hear nothing, and the first would have to outlive them all.
    """

    trt: Any = None
    logger: Any = None
    heard_by: tuple[weakref.ref[Messages], ...] = ()


def make_logger(trt: Any, messages: Messages) -> Any:
    """The logger of this process, whose messages of INFO and worse are heard by `messages` too from now on, as long as
    that lives: errors for our own errors, and what the builder chose.

    Of the verbose ones it passes on those on sparse kernels, where TensorRT 10 and later put them.
    """
    living = [ref for ref in _Process.heard_by if ref() is not None]
    _Process.heard_by = (*(ref for ref in living if ref() is not messages), weakref.ref(messages))
    if _Process.trt is not trt:
        _Process.trt, _Process.logger = trt, _collector(trt)
    return _Process.logger


def _collector(trt: Any) -> Any:
    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity != trt.ILogger.Severity.VERBOSE or SPARSITY in msg:
                for ref in _Process.heard_by:
                    messages = ref()
                    if messages is not None:
                        messages.append(f"{getattr(severity, 'name', severity)}: {msg}")

    return Collector()


def complaints(messages: list[str], limit: int = 5) -> str:
    """The last errors among collected messages, for a user."""
    errors = [text for text in messages if text.startswith(("ERROR", "INTERNAL_ERROR"))]
    return "; ".join(errors[-limit:]) or "no message from TensorRT"
