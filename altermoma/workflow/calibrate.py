"""The int8 step: calibration frames, ranges, and what of a model becomes int8. A kill costs half a minute."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from altermoma.calib.frames import (
    CalibrationFrame,
    FrameManifest,
    check_frame,
    choose_frames,
    read_manifest,
    write_manifest,
)
from altermoma.calib.int8 import StagePlan, chosen_groups, plan_stages, watch
from altermoma.calib.observe import observe
from altermoma.calib.ranges import RANGES_FILE, Ranges, find_ranges, from_text, graph_key
from altermoma.calib.settings import CalibrationSettings, load_settings
from altermoma.calib.statistics import TensorStatistics
from altermoma.deploy.targets import load_target
from altermoma.errors import DataError, RecipeError
from altermoma.export.contract import load_contract
from altermoma.export.export_model import ExportResult
from altermoma.geometry import Geometry
from altermoma.ops.prepare import FramePreparer
from altermoma.recipe import Recipe
from altermoma.storage import sha256_of
from altermoma.workflow.place import Workplace

if TYPE_CHECKING:
    from altermoma.calib.export_int8 import Int8Export
    from altermoma.calib.search import Found

MANIFEST_FILE = "calibration/frames.json"
"""Where a bundle names its calibration frames."""

SENSITIVITY_FILE = "calibration/sensitivity.json"
SEARCH = "search"
"""In the record of an int8 export: what a search of layer groups found, as in SENSITIVITY_FILE."""
RECIPE_FILE = "calibration/recipe.toml"

Statistics = dict[str, dict[str, TensorStatistics]]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A model that was observed on its calibration frames."""

    plans: dict[str, StagePlan]
    manifest: FrameManifest
    settings: CalibrationSettings
    statistics: Statistics
    ranges: Ranges

    @property
    def groups(self) -> frozenset[str]:
        """Layer groups that the calibration recipe lets become int8."""
        return chosen_groups(self.plans, self.settings.keeps)

    def notes(self) -> dict[str, bytes]:
        """What a bundle carries of it."""
        frames = json.dumps(self.manifest.to_dict(), indent=1) + "\n"
        return {RANGES_FILE: self.ranges.to_text().encode(), MANIFEST_FILE: frames.encode()}


def settings_of(recipe: Recipe) -> CalibrationSettings:
    """The calibration recipe that a run asks for."""
    named = recipe.calibration.recipe
    return load_settings(named or ("nuscenes" if recipe.data.root else "synthetic"))


def check_untuned(recipe: Recipe) -> None:
    """Says before any work that exports calibrate, but do not tune.

    Raises:
        RecipeError: int8 with tuning steps.
    """
    steps = recipe.calibration.tune_steps
    if recipe.engine.precision == "int8" and steps:
        raise RecipeError(
            f"calibration.tune_steps = {steps} in an export, which does not tune",
            expected="0",
            remedy="tune with `altermoma calibrate --tune-steps`, and export the weights that it leaves",
        )


def calibration_inputs(recipe: Recipe) -> dict[str, Any]:
    """What decides the ranges, whatever the names of its files."""
    named = recipe.calibration.manifest
    frames = read_manifest(Path(named)).key if named else ""
    asked = recipe.calibration
    return {
        "settings": settings_of(recipe).to_dict(),
        "manifest": frames,
        "ranges": sha256_of(Path(asked.ranges)) if Path(asked.ranges).is_file() else asked.ranges,
        "max_map_drop": asked.max_map_drop,
        "tune_steps": asked.tune_steps,
    }


def calibrate(
    place: Workplace, fp32: ExportResult, geometry: Geometry, folder: Path, settings: CalibrationSettings
) -> Calibrated:
    """Observes the fp32 stages on the calibration frames; unfinished work is kept in `folder`.

    Raises:
        DataError: frames that are missing, too few or not those of the manifest; activations that are not finite or
            zero everywhere.
    """
    contract = load_contract(place.recipe.model)
    plans = plan_stages(fp32.stages, contract)
    manifest = frames_of(place, geometry, folder, settings)
    if place.recipe.calibration.ranges:
        known = known_ranges(place.recipe, fp32, manifest, settings)
        return Calibrated(plans=plans, manifest=manifest, settings=settings, statistics={}, ranges=known)
    expected = {frame.token: frame for frame in manifest.frames}
    preparer = FramePreparer(geometry)

    def read(token: str) -> dict[str, NDArray[Any]]:
        return _inputs(place, preparer, expected[token])

    groups = chosen_groups(plans, settings.keeps)
    statistics = observe(watch(plans, groups), manifest.tokens, read, folder / "statistics.npz")
    return Calibrated(
        plans=plans,
        manifest=manifest,
        settings=settings,
        statistics=statistics,
        ranges=ranges_of(place.recipe.model, fp32, manifest, statistics, settings),
    )


def int8_of(
    place: Workplace, fp32: ExportResult, geometry: Geometry, folder: Path
) -> tuple[Int8Export, dict[str, bytes]]:
    """Calibrates an fp32 export and quantises it; also what the bundle carries of the calibration."""
    from altermoma.calib.export_int8 import export_int8

    recipe = place.recipe
    settings = settings_of(recipe)
    target = load_target(recipe.engine.target)
    if settings.number not in target.precisions:
        raise RecipeError(
            f"target {target.name} does not offer {settings.number}", expected="one of " + ", ".join(target.precisions)
        )
    calibrated = calibrate(place, fp32, geometry, folder, settings)
    notes, groups = calibrated.notes(), calibrated.groups
    if recipe.calibration.max_map_drop > 0:
        from altermoma.workflow.sensitivity import search_groups

        found = search_groups(place, fp32, calibrated, geometry, folder)
        groups, notes = found.groups, notes | found_notes(found, calibrated.settings)
    contract = load_contract(recipe.model)
    return export_int8(fp32, calibrated.plans, contract, calibrated.ranges, groups, recipe.export.int8_tolerance), notes


def found_notes(found: Found, settings: CalibrationSettings) -> dict[str, bytes]:
    """What a search leaves: every group's harm, and a calibration recipe that makes the same choice without it."""
    keep = (*settings.keep, *(f"^{re.escape(group)}$" for group in found.left_out))
    recipe = dataclasses.replace(settings, keep=keep)
    return {
        SENSITIVITY_FILE: (json.dumps(found.to_dict(), indent=1) + "\n").encode(),
        RECIPE_FILE: tomli_w.dumps(recipe.to_dict()).encode(),
    }


def known_ranges(recipe: Recipe, fp32: ExportResult, manifest: FrameManifest, settings: CalibrationSettings) -> Ranges:
    """The ranges of the file that the recipe names, if they are of these graphs and frames and found as it asks.

    Raises:
        RecipeError: a range file without the manifest of its frames.
        DataError: no range file, or one of another model, stage cut, set of frames or way to find ranges.
    """
    path = Path(recipe.calibration.ranges)
    if not recipe.calibration.manifest:
        raise RecipeError(
            f"calibration.ranges = {str(path)!r} without calibration.manifest",
            expected="the frames.json that was written with it",
            remedy="name both, or neither",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read ranges {path}: {error}",
            expected="a ranges.json of altermoma calibrate",
            remedy="name that file and the frames.json beside it, or leave both out: ranges are then found anew",
        ) from error
    found = from_text(text, str(path))
    found.check(recipe.model, {name: graph_key(graph) for name, graph in fp32.stages.items()}, manifest.key)
    found.check_settings(settings)
    return found


def ranges_of(
    model: str, fp32: ExportResult, manifest: FrameManifest, statistics: Statistics, settings: CalibrationSettings
) -> Ranges:
    """Ranges by the recipe's calibrators, with what they hold for."""
    return Ranges(
        model=model,
        graphs={name: graph_key(graph) for name, graph in fp32.stages.items()},
        manifest=manifest.key,
        frames=len(manifest.frames),
        settings=settings.to_dict(),
        tensors=find_ranges(statistics, settings),
    )


def frames_of(place: Workplace, geometry: Geometry, folder: Path, settings: CalibrationSettings) -> FrameManifest:
    """The frames that the recipe's manifest names, or new ones from the training split; kept in `folder`.

    Raises:
        DataError: a manifest that is empty or of other data, or too few frames.
    """
    named, data = place.recipe.calibration.manifest, place.recipe.data
    kept = folder / "frames.json"
    if named:
        manifest = read_manifest(Path(named))
        known = set(place.reader.tables.samples)
        foreign = [frame.token for frame in manifest.frames if frame.token not in known]
        if foreign:
            raise DataError(
                f"calibration manifest {named} names frame {foreign[0]}, which {data.version} does not have",
                expected="frames of this data set",
                remedy="name a manifest of this data set, or leave calibration.manifest out",
            )
        return manifest
    if kept.is_file():
        return read_manifest(kept)
    frames = choose_frames(
        place.reader,
        place.reader.tokens(data.train_split),
        geometry,
        count=settings.frames,
        pool=settings.pool,
    )
    manifest = FrameManifest(version=data.version, split=data.train_split, sweeps=data.sweeps, frames=frames)
    write_manifest(kept, manifest)
    return manifest


def _inputs(place: Workplace, preparer: FramePreparer, expected: CalibrationFrame) -> dict[str, NDArray[Any]]:
    frame = place.reader.read(expected.token)
    check_frame(frame, expected)
    return {name: np.asarray(array) for name, array in preparer.prepare(frame).items()}
