"""The range file: what calibration found, readable, and with the proof of what it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

import altermoma
from altermoma.calib.calibrators import calibrate
from altermoma.calib.scales import Range
from altermoma.calib.settings import CalibrationSettings
from altermoma.calib.statistics import TensorStatistics
from altermoma.errors import DataError

SCHEMA = 1
RANGES_FILE = "calibration/ranges.json"
"""Where a bundle carries it."""

_DECIDING = ("number", "method", "methods", "percentile")
"""Settings that decide the ranges and what they mean; the frames themselves are held to their manifest."""

_AGAIN = "calibrate again: ranges hold for one model, one stage cut and one set of frames"


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Ranges by stage and tensor, and what they hold for.

    Attributes:
        model: preset.
        graphs: content key of every stage's fp32 graph.
        manifest: key of the calibration frames.
        frames: how many there are.
        settings: the calibration recipe as a record.
        tensors: stage -> tensor of the prepared graph (`segments.prepare`) -> range, in the tensor's unit.
    """

    model: str
    graphs: Mapping[str, str]
    manifest: str
    frames: int
    settings: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Range]]

    def check(self, model: str, graphs: Mapping[str, str], manifest: str) -> None:
        """Holds the ranges against what they are to be used for.

        Raises:
            DataError: another model, other weights, another stage cut, or other frames.
        """
        if self.model != model:
            raise DataError(f"the ranges are of model {self.model}", expected=model, remedy=_AGAIN)
        if set(self.graphs) != set(graphs):
            raise DataError(
                f"the ranges are of stages {', '.join(self.graphs)}", expected=", ".join(graphs), remedy=_AGAIN
            )
        stale = [name for name in graphs if graphs[name] != self.graphs[name]]
        if stale:
            raise DataError(
                f"the ranges are stale: stage {', '.join(stale)} has changed since",
                expected=f"graphs {', '.join(self.graphs[name] for name in stale)}",
                remedy=_AGAIN,
            )
        if self.manifest != manifest:
            raise DataError(
                f"the ranges are of calibration frames {self.manifest}", expected=f"frames {manifest}", remedy=_AGAIN
            )

    def check_settings(self, asked: CalibrationSettings) -> None:
        """Holds what decided the numbers against what a recipe asks for; `keep` may differ, it only leaves some unused.

        Raises:
            DataError: another number format, calibrator or percentile.
        """
        wanted = asked.to_dict()
        other = [key for key in _DECIDING if self.settings.get(key) != wanted[key]]
        if other:
            raise DataError(
                "the ranges are of " + ", ".join(f"{key} = {self.settings.get(key)!r}" for key in other),
                expected=", ".join(f"{key} = {wanted[key]!r}" for key in other) + ", as the calibration recipe says",
                remedy="name the calibration recipe that they were found with, or calibrate again",
            )

    def to_text(self) -> str:
        record = {
            "schema": SCHEMA,
            "altermoma": altermoma.__version__,
            "model": self.model,
            "graphs": dict(self.graphs),
            "manifest": self.manifest,
            "frames": self.frames,
            "settings": dict(self.settings),
            "tensors": {
                stage: {name: [found.low, found.high] for name, found in tensors.items()}
                for stage, tensors in self.tensors.items()
            },
        }
        return json.dumps(record, indent=1, allow_nan=False) + "\n"


def from_text(text: str, source: str) -> Ranges:
    """Reads a range file; `source` names it in errors.

    Raises:
        DataError: not a range file, or a range that is none.
    """
    try:
        record = json.loads(text)
        if record["schema"] != SCHEMA:
            raise DataError(f"{source} has schema {record['schema']!r}", expected=f"schema {SCHEMA}", remedy=_AGAIN)
        tensors = {
            stage: {name: Range(low=float(low), high=float(high)) for name, (low, high) in found.items()}
            for stage, found in record["tensors"].items()
        }
        found = Ranges(
            model=record["model"],
            graphs=record["graphs"],
            manifest=record["manifest"],
            frames=record["frames"],
            settings=record["settings"],
            tensors=tensors,
        )
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{source} is no range file: {error!r}", expected="ranges by stage", remedy=_AGAIN) from error
    for stage, ranges in tensors.items():
        for name, item in ranges.items():
            if not item.low <= 0.0 <= item.high or item.low == item.high:
                raise DataError(
                    f"{source}: the range of {stage}: {name} is {item.low:g} to {item.high:g}",
                    expected="a range that holds zero and more",
                    remedy=_AGAIN,
                )
    return found


def find_ranges(
    statistics: Mapping[str, Mapping[str, TensorStatistics]], settings: CalibrationSettings
) -> dict[str, dict[str, Range]]:
    """Ranges by stage and tensor, by the recipe's calibrators. Errors as `calibrators.calibrate`."""
    return {
        stage: {
            name: calibrate(f"{stage}: {name}", found, settings.method_of(stage), settings.percentile)
            for name, found in tensors.items()
        }
        for stage, tensors in statistics.items()
    }


def graph_key(graph: onnx.ModelProto) -> str:
    """The content key that the export wrote into a graph.

    Raises:
        DataError: a graph without one.
    """
    for item in graph.metadata_props:
        if item.key == "content_key":
            return str(item.value)
    raise DataError(
        f"graph {graph.graph.name!r} carries no content key", expected="a stage graph of an altermoma export"
    )
