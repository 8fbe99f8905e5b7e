"""What a model's stages take at several widths, measured on another machine: the two files that travel. Pure data.

tables.json     beside a bundle of each width: what they are, and which share of a stage's FLOPs each has (`WidthSet`)
latency.json    what every stage took in each of them (`MeasuredTables`), which `[prune] latency_tables` names
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from altermoma.deploy.manifest import Manifest
from altermoma.errors import BundleError, StorageError
from altermoma.storage import content_key, read_json, write_json

TABLES_FILE = "tables.json"
LATENCY_FILE = "latency.json"
SCHEMA = 1
"""Of both files; raised with every change that an older reader would misunderstand."""

SEAL = "seal"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Served:
    """The engines that tables are for: times of one precision say nothing of another."""

    precision: str
    sparsity: str
    target: str

    def __str__(self) -> str:
        weights = " with 2:4 weights" if self.sparsity == "2:4" else ""
        return f"{self.precision}{weights} for target {self.target}"


@dataclass(frozen=True, kw_only=True)
class WidthBundle:
    """One bundle of a set.

    Attributes:
        name: its folder.
        identity: see `identity_of`.
        shares: of the dense FLOPs, by stage.
    """

    name: str
    identity: str
    shares: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class WidthSet:
    """A model at several widths, as bundles in one folder.

    Attributes:
        model: preset.
        served: what they were exported for.
        flops: of the dense model on the bundles' reference frame, by stage.
        widths: the dense model first.
    """

    model: str
    served: Served
    flops: dict[str, float]
    widths: tuple[WidthBundle, ...]

    def write(self, folder: Path) -> None:
        record = {"schema": SCHEMA, **dataclasses.asdict(self)}
        write_json(folder / TABLES_FILE, {**record, SEAL: content_key(json.loads(json.dumps(record)))})

    @classmethod
    def read(cls, folder: Path) -> WidthSet:
        """Raises:
        BundleError: no such folder, another schema, or a file that was altered.
        """
        path = folder / TABLES_FILE
        if not path.is_file():
            raise BundleError(
                f"{folder} holds no {TABLES_FILE}",
                expected="a folder that `altermoma tables write` left",
                remedy="name that folder itself, with the bundles of all widths in it",
            )
        record = _record(path)
        if record.pop(SEAL, None) != content_key(record):
            raise BundleError(
                f"{path} was altered after it was written",
                expected="the file as written",
                remedy="copy the folder again, or write it again: altermoma tables write",
            )
        return _parsed(path, lambda: _width_set(record))


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Of one stage, width by width.

    Attributes:
        shares: of its dense FLOPs.
        ms: medians; what pruning goes by, since a budget is about what frames take.
        least: the shortest, to be held against the medians; empty where not told.
    """

    shares: tuple[float, ...]
    ms: tuple[float, ...]
    least: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MeasuredTables:
    """What was measured where.

    Attributes:
        model, served, flops: as in `WidthSet`.
        device: what ran them, as people call it.
        runtime: "TensorRT 10.3.0", "ONNX Runtime 1.20.1".
        stages: by name.
        widths: names of the columns of `stages`, for people; empty where not told.
        about: JSON-able: rounds, conditions, clocks; nothing reads it but people.
    """

    model: str
    served: Served
    flops: dict[str, float]
    device: str
    runtime: str
    stages: dict[str, StageTimes]
    widths: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        write_json(path, {"schema": SCHEMA, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> MeasuredTables:
        """Not sealed: a machine that has only trtexec can have its times written down by hand.

        Raises:
            StorageError: no such file, or not one of these.
        """
        if not path.is_file():
            raise StorageError(
                f"no latency tables at {path}",
                expected=f"the {LATENCY_FILE} that `altermoma tables measure` left",
                remedy="check the path, which is taken from the folder that the command runs in",
            )
        record = _record(path)
        return _parsed(path, lambda: _measured(record))


def identity_of(manifest: Manifest) -> str:
    """Of a bundle's content, whatever engines were built in it."""
    return content_key({name: file.sha256 for name, file in manifest.files.items()})


def _record(path: Path) -> dict[str, Any]:
    record = read_json(path)
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise StorageError(
            f"{path} has schema {schema!r}",
            expected=f"schema {SCHEMA}",
            remedy="write and measure the tables with one version of altermoma, that of the pruning machine",
        )
    found: dict[str, Any] = record
    return found


def _parsed(path: Path, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(
            f"{path} is incomplete or malformed: {error!r}",
            expected="the keys of docs/latency_tables.md",
            remedy="write and measure the tables again",
        ) from error


def _width_set(record: Mapping[str, Any]) -> WidthSet:
    return WidthSet(
        model=str(record["model"]),
        served=Served(**record["served"]),
        flops=_numbers(record["flops"]),
        widths=tuple(
            WidthBundle(name=str(entry["name"]), identity=str(entry["identity"]), shares=_numbers(entry["shares"]))
            for entry in record["widths"]
        ),
    )


def _measured(record: Mapping[str, Any]) -> MeasuredTables:
    stages = {name: _times(name, entry) for name, entry in record["stages"].items()}
    return MeasuredTables(
        model=str(record["model"]),
        served=Served(**record["served"]),
        flops=_numbers(record["flops"]),
        device=str(record["device"]),
        runtime=str(record["runtime"]),
        stages=stages,
        widths=tuple(map(str, record.get("widths", ()))),
        about=dict(record.get("about", {})),
    )


def _times(name: str, entry: Mapping[str, Any]) -> StageTimes:
    times = StageTimes(**{key: tuple(float(value) for value in values) for key, values in entry.items()})
    if not times.shares or len(times.shares) != len(times.ms) or not all(map(_positive, (*times.ms, *times.shares))):
        raise ValueError(f"stage {name} wants as many times as shares, all finite and above 0")
    if not math.isclose(max(times.shares), 1.0):
        raise ValueError(f"stage {name} lacks the dense model, whose share is 1")
    return times


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0.0


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in record.items()}
