"""Which software made a result."""

from __future__ import annotations

import importlib.metadata
import platform

from altermoma.workflow.keys import code_version

_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy", "nuscenes-devkit")


def versions() -> dict[str, str]:
    """Versions of what matters, by name; absent libraries are left out."""
    found = {"altermoma": code_version(), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
