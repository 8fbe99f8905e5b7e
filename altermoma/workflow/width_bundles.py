"""The dense model at several widths, a bundle each, for a target to run: what its milliseconds depend on."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altermoma.deploy.bundle import MANIFEST_FILE, Bundle
from altermoma.deploy.stage_tables import TABLES_FILE, WidthBundle, WidthSet, identity_of
from altermoma.errors import PruningError, StorageError
from altermoma.progress import busy, say, track
from altermoma.recipe import CalibrationRecipe, Recipe
from altermoma.storage import atomic_path, check_writable
from altermoma.workflow.calibrate import calibration_inputs, check_untuned
from altermoma.workflow.compress import reference_batch
from altermoma.workflow.given_tables import served_by
from altermoma.workflow.place import Workplace
from altermoma.workflow.plan import data_inputs, model_inputs, precisions_of
from altermoma.workflow.scoring import with_open_keys_filled
from altermoma.workflow.single import unfinished
from altermoma.workflow.sparsity import check_sparsity
from altermoma.workflow.stage_times import KEPT, UNCHECKED, narrowed
from altermoma.workflow.steps import Record

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel
    from altermoma.pruning.channels import ChannelGroup

Widths = dict[str, int]
"""Channels by group."""

CALIBRATION_FRAMES = 8
"""Int8 graphs hold ranges, which their time does not depend on: few frames will do."""


def write_widths(recipe: Recipe, folder: Path) -> Path:
    """Exports the recipe's checkpoint at the widths of `KEPT`; returns the folder: a bundle each, and `tables.json`.

    A kill costs the bundle that is being made.

    Raises:
        StorageError: something else is in the folder.
        PruningError: the channel steps leave no choice of widths.
    """
    _check_replaceable(folder)
    check_writable(folder)
    check_sparsity(recipe)
    check_untuned(recipe)
    recipe = _timed_only(recipe)
    place = Workplace(recipe)
    with busy("Reading the tables"):
        asked = {name: value for name, value in recipe.to_dict().items() if name != "compute"}
        inputs = {"data": data_inputs(place), "recipe": asked, "kept": list(KEPT), **model_inputs(place)}
        if recipe.engine.precision == "int8":
            inputs["calibration"] = calibration_inputs(recipe)

    def export(work: Path) -> Record:
        return _export(place, work)

    with unfinished("tables", "Export at several widths", inputs, export) as (work, record), atomic_path(folder) as out:
        out.mkdir()
        for name in record["shares"]:
            shutil.copytree(work / name / "bundle", out / name)
        _width_set(place, work, record).write(out)
    return folder


def _timed_only(recipe: Recipe) -> Recipe:
    """The recipe with the channel steps that pruning will have; what the graphs answer is not looked at.

    Int8 is what the calibration recipe lets become int8: a search by accuracy would find something else for each width.
    """
    left = dataclasses.replace(recipe.prune, amount=0.0)
    filled = with_open_keys_filled(dataclasses.replace(recipe, prune=left))
    calibration = CalibrationRecipe(recipe=recipe.calibration.recipe)
    return dataclasses.replace(filled, export=UNCHECKED, calibration=calibration)


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / TABLES_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(
            f"{folder} exists and holds no {TABLES_FILE}",
            expected="a new folder, an empty one, or one of an earlier `altermoma tables write`",
            remedy="choose another folder",
        )


def _with_few_frames(place: Workplace, file: Path) -> Workplace:
    """The same place with a calibration of its own, whose frames are kept in `file`."""
    from altermoma.calib.frames import FrameManifest, choose_frames, write_manifest

    if place.recipe.engine.precision != "int8":
        return place
    if not file.is_file():
        data = place.recipe.data
        tokens = place.reader.tokens(data.train_split)
        count = min(CALIBRATION_FRAMES, len(tokens))
        frames = choose_frames(place.reader, tokens, place.geometry, count=count, pool=count)
        write_manifest(
            file, FrameManifest(version=data.version, split=data.train_split, sweeps=data.sweeps, frames=frames)
        )
    calibration = dataclasses.replace(place.recipe.calibration, manifest=str(file))
    return Workplace(dataclasses.replace(place.recipe, calibration=calibration))


def _export(place: Workplace, work: Path) -> Record:
    """Leaves a bundle of each width; those that a killed process left are kept."""
    from altermoma.pruning.flops import count_flops
    from altermoma.pruning.groups import fusion_groups
    from altermoma.workflow.graphs import export_bundle

    place = _with_few_frames(place, work / "frames.json")
    model, batch = place.model_on_host(place.checkpoint), reference_batch(place)
    groups, dense = fusion_groups(model), count_flops(model, batch).by_stage()
    before = {group.name: group.width for group in groups}
    shares: dict[str, dict[str, float]] = {}
    for name, widths in track(_choices(place, groups).items(), "Exporting at several widths"):
        smaller = _cut(place, model, widths)
        left = count_flops(smaller, batch).by_stage()
        shares[name] = {stage: left[stage] / dense[stage] for stage in dense}
        if not (work / name / "bundle" / MANIFEST_FILE).is_file():
            channels = {"dense": before, "kept": widths}
            export_bundle(place, smaller, precisions_of(place.recipe), work / name / "bundle", channels)
    return {"flops": dense, "shares": shares}


def _choices(place: Workplace, groups: tuple[ChannelGroup, ...]) -> dict[str, Widths]:
    """Widths by the folder's name, of every group the allowed one nearest to the share of `KEPT`; each choice once.

    Pruning takes widths of these steps alone: at others kernels pad, and their times would mislead it.
    """
    from altermoma.pruning.selection import SelectionOptions, allowed_widths

    prune = place.recipe.prune
    options = SelectionOptions(
        amount=0.0, step=prune.channel_step, lidar_step=prune.lidar_channel_step, floor=prune.min_channels
    )
    found: dict[str, Widths] = {}
    for kept in KEPT:
        widths = {
            group.name: _nearest(allowed_widths(group.width, options.step_of(group), options.floor), kept * group.width)
            for group in groups
        }
        if widths not in found.values():
            found[f"{100 * kept:.0f}"] = widths
    say(f"widths are multiples of {options.step}, in the sparse encoder of {options.lidar_step}, as in pruning")
    if len(found) < 2:
        raise PruningError(
            f"channel steps of {options.step} leave every group as it is",
            expected="two or more choices of widths",
            remedy="lower prune.channel_step or prune.min_channels",
        )
    return found


def _nearest(allowed: tuple[int, ...], wanted: float) -> int:
    """The wider of two that are as near."""
    return min(allowed, key=lambda width: (abs(width - wanted), -width))


def _cut(place: Workplace, model: FusionModel, widths: Mapping[str, int]) -> FusionModel:
    """The model at these widths; its weights are 2:4 where the engines' will be, for kernels go by the pattern."""
    from altermoma.pruning.two_four_prune import prune_two_four

    smaller, recipe = narrowed(model, widths), place.recipe
    if recipe.engine.sparsity == "dense":
        return smaller
    return prune_two_four(smaller, recipe.prune.two_four_rule, permute=False).model


def _width_set(place: Workplace, work: Path, record: Mapping[str, Any]) -> WidthSet:
    return WidthSet(
        model=place.recipe.model,
        served=served_by(place.recipe),
        flops=record["flops"],
        widths=tuple(
            WidthBundle(name=name, identity=identity_of(Bundle.open(work / name / "bundle").manifest), shares=shares)
            for name, shares in record["shares"].items()
        ),
    )
