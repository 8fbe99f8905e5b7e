"""The steps of the one-shot as commands of their own, without a run folder, and as resumable as there."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altermoma.deploy.bundle import MANIFEST_FILE, Bundle, check_replaceable, copy_bundle
from altermoma.deploy.pipeline import Backend
from altermoma.errors import RecipeError, StorageError
from altermoma.progress import busy, say
from altermoma.recipe import DataRecipe, Recipe, from_dict
from altermoma.storage import cache_folder, check_writable, content_key, sha256_of, write_bytes
from altermoma.workflow import accuracy
from altermoma.workflow.accuracy import DETECTIONS_FILE
from altermoma.workflow.calibrate import calibration_inputs, check_untuned
from altermoma.workflow.compress import PRUNED_FILE, prune_model, teacher_of
from altermoma.workflow.given_tables import check_tables
from altermoma.workflow.keys import code_version
from altermoma.workflow.mask_weights import check_single_weights, mask_weights
from altermoma.workflow.place import Workplace
from altermoma.workflow.plan import data_inputs, model_inputs, precisions_of, prune_inputs
from altermoma.workflow.runs import lock
from altermoma.workflow.scoring import with_open_keys_filled
from altermoma.workflow.sparsity import check_sparsity, masks_of
from altermoma.workflow.steps import Record, Step, run_steps, step_keys

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel

MODEL_FILE = "model.safetensors"
UNFINISHED = "unfinished"
"""Folder of the cache that holds the work of killed commands until they are run again."""

ABANDONED_DAYS = 30
"""After so many days nobody runs them again."""


@contextlib.contextmanager
def unfinished(
    name: str, title: str, inputs: dict[str, Any], run: Callable[[Path], Record]
) -> Iterator[tuple[Path, Record]]:
    """Does one step in a folder of the cache; yields it and the record, and removes it then.

    The folder is named by the step's key: the same command, killed and given again, goes on in it.

    Args:
        name: of the step.
        title: what the user reads while it runs.
        inputs: JSON-serialisable, everything that decides the result.
        run: does the work in the folder that it is given.

    Raises:
        StorageError: another process does the same.
    """
    step = Step(name=name, title=title, inputs=inputs, needs=(), run=lambda folder, _: run(folder))
    code = code_version()
    place = cache_folder() / UNFINISHED / f"{name}-{content_key(step_keys([step], code))}"
    _forget_abandoned(place.parent)
    with contextlib.ExitStack() as stack:
        check_writable(place / name)
        if not lock(place, stack):
            raise StorageError(
                f"another process does the same in {place}", expected="one at a time", remedy="wait for it"
            )
        if (place / name).is_dir():
            say(f"continuing what an earlier command left in {place}")
        result = run_steps([step], place, code)[name]
        yield place / name, result.record
        shutil.rmtree(place, ignore_errors=True)


def _forget_abandoned(folder: Path) -> None:
    """Removes work that nobody took up again, and that no process is in."""
    oldest = time.time() - ABANDONED_DAYS * 86400
    for place in folder.glob("*/"):
        # Whatever is written in it is written by a step, into the folder or one below.
        used = max((entry.stat().st_mtime for entry in (place, *place.rglob("*"))), default=0.0)
        with contextlib.ExitStack() as stack:
            if used < oldest and lock(place, stack):
                shutil.rmtree(place, ignore_errors=True)


def train_model(recipe: Recipe, folder: Path, *, from_scratch: bool = False, teacher: Path | None = None) -> Path:
    """Trains with the recipe's [finetune]; returns the weights written to the folder. Zeros that pruning made stay.

    In processes that torchrun started, each takes its share of every batch, and the first of them writes. With a
    `teacher`, the dense weights that the checkpoint was pruned from, the model is held against it.
    """
    from altermoma.checkpoints.io import describe, save_checkpoint
    from altermoma.models.ranks import process_group
    from altermoma.training.loop import detection_objective, train

    if teacher is not None and recipe.finetune.distill_weight == 0.0:
        raise RecipeError(
            "--teacher with finetune.distill_weight = 0",
            expected="a weight above 0, by which the model is held against the teacher",
            remedy="raise distill_weight under [finetune], or leave --teacher out",
        )
    check_writable(folder / MODEL_FILE)
    place = Workplace(recipe)
    with process_group(place.device) as ranks:
        with busy("Opening data and model"):
            model = _seeded(place) if from_scratch else place.dense_model()
            masks, sparsity = ({}, {}) if from_scratch else masks_of(place.checkpoint)
            shown = None if teacher is None else teacher_of(place, place.checkpoint, teacher)
            frames = place.train
        objective = detection_objective(recipe.finetune, shown)
        result = train(
            model,
            frames,
            recipe.finetune,
            folder=folder,
            objective=objective,
            masks=masks,
            compute=recipe.compute,
            data=data_inputs(place),
        )
        if ranks.first:
            metadata = describe(result.model, recipe.model) | {"recipe": recipe.to_dict()} | sparsity
            save_checkpoint(folder / MODEL_FILE, result.model.state_dict(), metadata)
    return folder / MODEL_FILE


def _seeded(place: Workplace) -> FusionModel:
    import torch

    from altermoma.models.fusion import FusionModel

    torch.manual_seed(place.recipe.finetune.seed)
    return FusionModel(place.config).to(place.device)


def prune_to_file(recipe: Recipe, file: Path) -> Path:
    """Scores and prunes; returns the file of pruned weights."""
    if file.is_dir():
        remedy = f"give --out {file / PRUNED_FILE}"
        raise StorageError(f"{file} is a folder", expected="a file to write", remedy=remedy)
    check_writable(file)
    check_sparsity(recipe)
    check_single_weights(recipe)
    check_tables(recipe)
    place = Workplace(with_open_keys_filled(recipe))
    with busy("Reading the tables"):
        inputs = {"data": data_inputs(place), **prune_inputs(place)}
    pruned = mask_weights if recipe.prune.budget == "weights" else prune_model
    with unfinished("prune", "Pruning", inputs, lambda folder: pruned(place, folder)) as (work, _):
        write_bytes(file, (work / PRUNED_FILE).read_bytes())
    return file


def export_to_bundle(recipe: Recipe, folder: Path) -> Path:
    """Exports the recipe's checkpoint; returns the bundle folder."""
    check_replaceable(folder)
    check_writable(folder)
    check_sparsity(recipe)
    check_untuned(recipe)
    place = Workplace(recipe)
    with busy("Reading the tables"):
        asked = {name: value for name, value in recipe.to_dict().items() if name != "compute"}
        inputs = {"data": data_inputs(place), "recipe": asked, **model_inputs(place)}
        if recipe.engine.precision == "int8":
            inputs["calibration"] = calibration_inputs(recipe)

    def export(work: Path) -> Record:
        from altermoma.workflow.graphs import export_bundle

        model = place.model_on_host(place.checkpoint)
        return export_bundle(place, model, precisions_of(recipe), work / "bundle", {})

    with unfinished("export", "Export", inputs, export) as (work, _):
        copy_bundle(work / "bundle", folder)
    return folder


def evaluate_checkpoint(recipe: Recipe) -> dict[str, Any]:
    """Metrics of the recipe's checkpoint in torch."""
    place = Workplace(recipe)
    with busy("Reading the tables"):
        inputs = {"data": data_inputs(place), **model_inputs(place)}

    def evaluate(work: Path) -> Record:
        return accuracy.evaluate_torch(place, place.dense_model(), work)

    with unfinished("eval", "Evaluation", inputs, evaluate) as (_, metrics):
        return metrics


def with_data_of(recipe: Recipe, bundle: Path) -> Recipe:
    """The recipe with the data that a bundle was made with: its splits and sweeps; a root that was given stays."""
    data = from_dict(DataRecipe, Bundle.open(bundle).manifest.recipe.get("data", {}), "data.")
    return dataclasses.replace(recipe, data=dataclasses.replace(data, root=recipe.data.root or data.root))


def evaluate_bundle(recipe: Recipe, bundle: Path, backend: Backend, precision: str) -> dict[str, Any]:
    """Metrics of a bundle's graphs or engines on the recipe's data."""
    place = Workplace(recipe)
    Bundle.open(bundle).stages(precision)
    with busy("Reading the tables"):
        inputs = {"data": data_inputs(place), "bundle": sha256_of(bundle / MANIFEST_FILE), "run": [backend, precision]}

    def evaluate(work: Path) -> Record:
        return accuracy.evaluate_engine(place, bundle, backend, precision, work / DETECTIONS_FILE)

    with unfinished("eval", "Evaluation", inputs, evaluate) as (_, metrics):
        return metrics
