"""The steps of `altermoma-export`, in order, with what each result depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from altermoma.data.map_masks import no_masks
from altermoma.deploy.pipeline import Backend
from altermoma.deploy.targets import load_target
from altermoma.errors import DataError
from altermoma.recipe import Precision, Recipe
from altermoma.storage import sha256_of
from altermoma.workflow import accuracy, engines
from altermoma.workflow.accuracy import DETECTIONS_FILE
from altermoma.workflow.calibrate import calibration_inputs
from altermoma.workflow.compress import PRUNED_FILE, finetune_model, prune_model
from altermoma.workflow.given_tables import tables_inputs
from altermoma.workflow.keys import data_key
from altermoma.workflow.place import Workplace
from altermoma.workflow.sparsity import sparsity_inputs
from altermoma.workflow.steps import Record, Records, Step, require_file

DENSE_EXPORT, EXPORT, ENGINES = "export-dense", "export", "engines"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine of the run that is evaluated: `variant` is its key in the summary."""

    variant: str
    backend: Backend
    precision: Precision
    bundle_step: str


def precisions_of(recipe: Recipe) -> tuple[Precision, ...]:
    """fp32 always, as the yardstick; then the precision asked for."""
    asked = recipe.engine.precision
    return ("fp32",) if asked == "fp32" else ("fp32", asked)


def engines_of(recipe: Recipe, built: list[Precision]) -> tuple[Engine, ...]:
    """Everything that was exported or built, dense fp32 first."""
    found = [
        Engine(variant="dense-onnxruntime-fp32", backend="onnxruntime", precision="fp32", bundle_step=DENSE_EXPORT)
    ]
    for precision in precisions_of(recipe):
        found.append(
            Engine(variant=f"onnxruntime-{precision}", backend="onnxruntime", precision=precision, bundle_step=ENGINES)
        )
    for precision in built:
        found.append(
            Engine(variant=f"tensorrt-{precision}", backend="tensorrt", precision=precision, bundle_step=ENGINES)
        )
    return tuple(found)


def plan(place: Workplace) -> tuple[Step, ...]:
    """All steps of a run; nothing is computed yet but the hashes of the inputs."""
    recipe = place.recipe
    parts: dict[str, Any] = recipe.to_dict()
    source, model = data_inputs(place), model_inputs(place)
    target = {"export": parts["export"], "engine": parts["engine"], "name": recipe.name}
    # How far engines may be from torch is judged after all steps, on what they found.
    # Where torch computed is no part of what is made.
    baked = {name: value for name, value in parts.items() if name not in {"parity", "compute"}}
    if recipe.engine.precision == "int8":
        baked["calibration"] = calibration_inputs(recipe)
    steps = _Steps(place)
    return (
        Step(name="data", title="Data", inputs=source, needs=(), run=steps.data),
        Step(name="dense-eval", title="Dense model", inputs=model, needs=("data",), run=steps.dense_eval),
        Step(
            name="prune",
            title="Pruning",
            inputs=prune_inputs(place),
            needs=("data",),
            run=steps.prune,
        ),
        Step(
            name="finetune",
            title="Fine-tuning",
            inputs=training_inputs(recipe),
            needs=("data", "prune"),
            run=steps.finetune,
        ),
        Step(name="pruned-eval", title="Pruned model", inputs={}, needs=("finetune",), run=steps.pruned_eval),
        Step(
            name=DENSE_EXPORT,
            title="Export of the dense model",
            inputs={**model, **target},
            needs=("data",),
            run=steps.export_dense,
        ),
        Step(name=EXPORT, title="Export", inputs=baked, needs=("finetune",), run=steps.export),
        Step(
            name=ENGINES, title="Engines", inputs=engines.environment(recipe.engine), needs=(EXPORT,), run=steps.engines
        ),
        Step(
            name="engine-eval",
            title="Engines on the validation split",
            inputs={},
            needs=(ENGINES, DENSE_EXPORT, "pruned-eval", "dense-eval"),
            run=steps.engine_eval,
        ),
        Step(
            name="bench",
            title="Latency",
            inputs=parts["bench"],
            needs=(ENGINES, DENSE_EXPORT, "finetune"),
            run=steps.bench,
        ),
    )


def data_inputs(place: Workplace) -> dict[str, Any]:
    """What the frames of a run are, wherever they lie."""
    data = place.recipe.data
    asked = {key: value for key, value in dataclasses.asdict(data).items() if key != "root"}
    return {"recipe": asked, "tables": data_key(place.root, data.version) if data.root else ""}


def model_inputs(place: Workplace) -> dict[str, Any]:
    """What the dense model of a run is."""
    return {"model": place.recipe.model, "weights": sha256_of(place.checkpoint)}


def training_inputs(recipe: Recipe) -> dict[str, Any]:
    """What decides trained weights; where they are computed and who reads the frames does not."""
    compute = {"precision": recipe.compute.precision, "accumulate": recipe.compute.accumulate}
    return {**dataclasses.asdict(recipe.finetune), "compute": compute}


def prune_inputs(place: Workplace) -> dict[str, Any]:
    """What decides pruned weights, besides the frames."""
    recipe = place.recipe
    rounds = {"rounds": training_inputs(recipe)} if recipe.prune.method == "imp" else {}
    measured: dict[str, Any] = {}
    if recipe.prune.budget == "latency":
        # Stages are measured on the graphs of the target's TensorRT, unless they were measured elsewhere.
        given = tables_inputs(recipe.prune)
        measured = given or {"tensorrt": load_target(recipe.engine.target).tensorrt}
    pruning = recipe.to_dict()["prune"]
    del pruning["latency_tables"]  # where they lie decides nothing
    return {**model_inputs(place), "prune": pruning, **sparsity_inputs(recipe), **rounds, **measured}


class _Steps:
    """The work of each step, bound to one run's workplace."""

    def __init__(self, place: Workplace) -> None:
        self._place = place

    def data(self, folder: Path, _: Records) -> Record:
        place = self._place
        if all(place.reader.truth(token) is None for token in place.val.tokens):
            raise DataError(
                f"split {place.recipe.data.val_split} has no annotations",
                expected="a validation split with true boxes",
                remedy="set data.val_split to an annotated split",
            )
        _check_map(place)
        return {
            "version": place.recipe.data.version,
            "train_frames": len(place.train),
            "val_frames": len(place.val),
            "synthetic": not place.recipe.data.root,
        }

    def dense_eval(self, folder: Path, _: Records) -> Record:
        return accuracy.evaluate_torch(self._place, self._place.dense_model(), folder)

    def prune(self, folder: Path, _: Records) -> Record:
        return prune_model(self._place, folder)

    def finetune(self, folder: Path, _: Records) -> Record:
        return finetune_model(self._place, require_file(folder.parent / "prune" / PRUNED_FILE), folder)

    def pruned_eval(self, folder: Path, _: Records) -> Record:
        return accuracy.evaluate_torch(self._place, self._place.model(_pruned(folder)), folder)

    def export_dense(self, folder: Path, _: Records) -> Record:
        from altermoma.workflow.graphs import export_bundle

        place = self._place
        return export_bundle(
            place, place.model_on_host(place.checkpoint), ("fp32",), bundle_of(folder.parent, DENSE_EXPORT), {}
        )

    def export(self, folder: Path, records: Records) -> Record:
        from altermoma.workflow.graphs import export_bundle

        pruned = records["prune"]
        widths = {"dense": pruned["widths_before"], "kept": pruned["widths_after"]}
        model = self._place.model_on_host(_pruned(folder))
        return export_bundle(
            self._place, model, precisions_of(self._place.recipe), bundle_of(folder.parent, EXPORT), widths
        )

    def engines(self, folder: Path, _: Records) -> Record:
        return engines.build_engines(
            self._place.recipe.engine, bundle_of(folder.parent, EXPORT), bundle_of(folder.parent, ENGINES)
        )

    def engine_eval(self, folder: Path, records: Records) -> Record:
        found: Record = {}
        for engine in engines_of(self._place.recipe, records[ENGINES]["precisions"]):
            file = folder / f"{engine.variant}.npz"
            bundle = bundle_of(folder.parent, engine.bundle_step)
            metrics = accuracy.evaluate_engine(self._place, bundle, engine.backend, engine.precision, file)
            yardstick = "dense-eval" if engine.bundle_step == DENSE_EXPORT else "pruned-eval"
            agreement = accuracy.compare_files(folder.parent / yardstick / DETECTIONS_FILE, file)
            found[engine.variant] = {"metrics": metrics, "boxes": dataclasses.asdict(agreement)}
        return found

    def bench(self, folder: Path, records: Records) -> Record:
        from altermoma.workflow.timing import bench_variants

        return bench_variants(
            self._place,
            dense=bundle_of(folder.parent, DENSE_EXPORT),
            pruned=bundle_of(folder.parent, ENGINES),
            torch_weights={"dense": self._place.checkpoint, "pruned": _pruned(folder)},
            engines=tuple(records[ENGINES]["precisions"]),
        )


def _check_map(place: Workplace) -> None:
    """Says before any work that a map head has nothing to learn from, or frames that move away from their masks."""
    recipe = place.recipe
    if place.config.map is not None and place.val.masks is None and (recipe.prune.amount or recipe.finetune.steps):
        raise no_masks()
    if recipe.finetune.steps:
        place.train.check_augmentation()


def _pruned(folder: Path) -> Path:
    return require_file(folder.parent / "finetune" / PRUNED_FILE)


def bundle_of(steps: Path, step: str) -> Path:
    """The bundle that a step left."""
    return steps / step / "bundle"
