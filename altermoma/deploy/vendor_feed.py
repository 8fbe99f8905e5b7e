"""Feeds the vendor's tools with this bundle's reference frame. Needs numpy, and polygraphy for the expected outputs.

    python reference/feed.py

writes into engines/by-hand/ what `trtexec --loadInputs` reads (raw bytes, one file per input) and, where polygraphy is,
what `polygraphy run --load-outputs` compares with. This file is also a data loader for polygraphy:

    polygraphy run stages/fp32/camera.onnx --onnxrt --data-loader-script reference/feed.py:camera_fp32
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUNDLE = Path(__file__).resolve().parents[1]
PLACE = "engines/by-hand"
"""Where a bundle tolerates files that its manifest does not list."""

Arrays = dict[str, NDArray[Any]]


@functools.lru_cache(maxsize=1)
def _frame() -> Arrays:
    """Every tensor that goes into or comes out of a stage, by name."""
    found: Arrays = {}
    for file, group in (("inputs.npz", "host."), ("outputs.npz", "tensor.")):
        with np.load(BUNDLE / "reference" / file, allow_pickle=False) as archive:
            found.update({key[len(group) :]: archive[key] for key in archive.files if key.startswith(group)})
    return found


@functools.lru_cache(maxsize=1)
def _stages() -> dict[str, dict[str, Any]]:
    """Contracts by `<stage>_<precision>`."""
    record = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    held = record["stages"].items()
    return {f"{name}_{precision}": stage for precision, stages in held for name, stage in stages.items()}


def tensors(stage: str, kind: str) -> Arrays:
    """`kind` is "inputs" or "outputs", in the types of the graph."""
    specs = _stages()[stage][kind]
    return {spec["name"]: np.ascontiguousarray(_frame()[spec["name"]], dtype=spec["dtype"]) for spec in specs}


def __getattr__(name: str) -> Callable[[], Iterator[Arrays]]:
    """`camera_fp32` and the like: loaders for polygraphy."""
    if name.startswith("_") or name not in _stages():
        raise AttributeError(name)
    return lambda: iter([tensors(name, "inputs")])


def write_all() -> list[Path]:
    """Writes inputs as raw bytes and, where polygraphy is, expected outputs as its JSON."""
    written = []
    place = BUNDLE / PLACE
    place.mkdir(parents=True, exist_ok=True)
    for stage in _stages():
        for name, array in tensors(stage, "inputs").items():
            path = place / f"{name}.{array.dtype}.bin"
            path.write_bytes(array.tobytes())
            written.append(path)
        try:
            from polygraphy.comparator import RunResults
        except ImportError:
            continue
        expected = RunResults()
        expected.add([tensors(stage, "outputs")], runner_name="reference")
        path = place / f"{stage}.json"
        expected.save(str(path))
        written.append(path)
    return sorted(set(written))


if __name__ == "__main__":
    for found in write_all():
        print(found.relative_to(BUNDLE))
