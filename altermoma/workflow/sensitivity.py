"""The search for the largest int8 share within an accuracy budget, as a step and as a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from altermoma.calib.export_int8 import rows_of
from altermoma.calib.insert import ONNX_RUNTIME, tensorrt_dialect
from altermoma.calib.search import Found, search
from altermoma.calib.sensitivity import group_macs, rank_groups
from altermoma.calib.trials import Run, Trials
from altermoma.deploy.targets import load_target
from altermoma.evaluation.nuscenes_eval import evaluate
from altermoma.evaluation.predict import detect_with
from altermoma.export.export_model import ExportResult, export_model
from altermoma.export.lint_tables import parse_version
from altermoma.geometry import Geometry
from altermoma.ops.prepare import FramePreparer
from altermoma.recipe import Recipe
from altermoma.storage import check_writable, write_bytes
from altermoma.workflow.calibrate import (
    Calibrated,
    calibrate,
    calibration_inputs,
    found_notes,
    settings_of,
)
from altermoma.workflow.place import Workplace
from altermoma.workflow.plan import data_inputs, model_inputs, training_inputs
from altermoma.workflow.single import unfinished
from altermoma.workflow.sparsity import masks_of

if TYPE_CHECKING:
    from altermoma.workflow.steps import Record


TUNED_FILE = "tuned.safetensors"


def search_groups(
    place: Workplace, fp32: ExportResult, calibrated: Calibrated, geometry: Geometry, folder: Path
) -> Found:
    """Ranks layer groups and finds those that become int8, on the validation split and for both runtimes.

    Raises:
        ExportError: nothing can be int8 within `calibration.max_map_drop`.
    """
    dialects = ONNX_RUNTIME, tensorrt_dialect(parse_version(fp32.trt_version))
    trials = Trials(
        calibrated.plans,
        calibrated.ranges.tensors,
        _scorer(place, geometry),
        folder / "trials.json",
        dialects,
    )
    known = {**fp32.inputs, **fp32.reference}
    macs = group_macs(calibrated.plans, {name: rows_of(plan, known) for name, plan in calibrated.plans.items()})
    ranking = rank_groups(trials, known, macs, calibrated.groups)
    return search(trials, ranking, place.recipe.calibration.max_map_drop)


def _scorer(place: Workplace, geometry: Geometry) -> Callable[[Run], float]:
    frames = place.val_for(geometry)

    def score(run: Run) -> float:
        found = dict(detect_with(run, frames, description="Scoring a trial"))
        return evaluate(place.reader, place.recipe.data.val_split, found).mAP

    return score


def calibrate_to_folder(recipe: Recipe, folder: Path) -> str:
    """`altermoma calibrate`: frames, ranges and, with a budget, the search; gives what to tell the user.

    The folder gets frames.json, ranges.json and, with a budget, sensitivity.json and recipe.toml; with tuning steps
    tuned.safetensors, a checkpoint to export.
    """
    check_writable(folder / "frames.json")
    place = Workplace(recipe)
    inputs = {
        "data": data_inputs(place),
        "model": model_inputs(place),
        "export": recipe.to_dict()["export"],
        "target": recipe.engine.target,
        "calibration": calibration_inputs(recipe),
    }
    if recipe.calibration.tune_steps:
        inputs["finetune"] = training_inputs(recipe)
    told: list[str] = []

    def work(here: Path) -> Record:
        model = place.model_on_host(place.checkpoint)
        geometry = model.config.geometry
        fp32 = export_model(
            model,
            FramePreparer(geometry).prepare(place.reader.read(place.val.tokens[0])),
            preset=recipe.model,
            precision="fp32",
            trt_version=load_target(recipe.engine.target).tensorrt,
            recipe=recipe.export,
        )
        calibrated = calibrate(place, fp32, geometry, here, settings_of(recipe))
        notes, groups = calibrated.notes(), calibrated.groups
        if recipe.calibration.max_map_drop > 0:
            found = search_groups(place, fp32, calibrated, geometry, here)
            groups, notes = found.groups, notes | found_notes(found, calibrated.settings)
            told.append(table(found))
        if recipe.calibration.tune_steps:
            notes[TUNED_FILE] = tuned(place, calibrated, groups, here / "tuning")
        for name, payload in notes.items():
            write_bytes(folder / Path(name).name, payload)
        return {}

    with unfinished("calibrate", "Calibration", inputs, work):
        pass
    return "\n".join([*told, f"written to {folder}"])


def tuned(place: Workplace, calibrated: Calibrated, groups: frozenset[str], folder: Path) -> bytes:
    """The model's weights after a few steps in which `groups` are rounded; 2:4 weights stay so.

    The rate is a tenth of the recipe's for fine-tuning.
    """
    from altermoma.calib.tune import data_limits, fake_quantised, frozen_norms
    from altermoma.checkpoints.io import describe, save_checkpoint
    from altermoma.training.loop import train

    recipe = place.recipe.finetune
    recipe = dataclasses.replace(recipe, steps=place.recipe.calibration.tune_steps, lr=recipe.lr / 10)
    model, (_, sparsity) = place.dense_model(), masks_of(place.checkpoint)
    limits = data_limits(model, calibrated.plans, groups, calibrated.ranges.tensors)
    zeros = {name: weight != 0 for name, weight in model.named_parameters() if (weight == 0).any()}
    with fake_quantised(model, limits), frozen_norms(model):
        result = train(model, place.train, recipe, folder=folder, masks=zeros or None, compute=place.recipe.compute)
    metadata = describe(result.model, place.recipe.model) | {"steps": result.steps} | sparsity
    save_checkpoint(folder / TUNED_FILE, result.model.state_dict(), metadata)
    return (folder / TUNED_FILE).read_bytes()


def table(found: Found) -> str:
    """The ranking as a table, and what came of it."""
    lines = [
        "| layer group | MACs (M) | signal (dB) | alone (mAP) | left out (mAP) | int8 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {h.group} | {h.macs / 1e6:.1f} | {h.signal_db:.1f} | {-h.alone:+.2f} | {h.regained:+.2f} | "
        f"{'yes' if h.group in found.groups else 'no'} |"
        for h in found.ranking
    ]
    lines.append(
        f"mAP {100 * found.map_fp32:.2f} in fp32, {100 * found.map_int8:.2f} with "
        f"{len(found.groups)} of {len(found.ranking)} groups in int8 (the worse of both runtimes' graphs)"
    )
    return "\n".join(lines)
