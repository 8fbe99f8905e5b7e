"""One step of the paper-scale measurements in a process of its own, so that its peak memory is its own.

    python scripts/paper_scale_steps.py score --preset bevfusion-mit-r101-second --data ../shared/real --runs runs/paper

`scripts/paper_scale_table.py` calls these in order. Weights are random (altermoma.models.random_weights): what is
measured does not depend on what was learned. The frame is a real one, its cloud replaced by one of ten sweeps.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file

from altermoma.checkpoints.io import WEIGHTS, bundled_checkpoint, model_from_checkpoint, save_checkpoint
from altermoma.data.augment import Augment, move_boxes
from altermoma.data.map_masks import MAP_TRUTH
from altermoma.data.nuscenes import NuScenesReader
from altermoma.frames import Boxes, Frame
from altermoma.models.batch import FrameBatch, collate
from altermoma.models.fusion import FusionModel
from altermoma.models.random_weights import random_model
from altermoma.ops.prepare import FramePreparer, StageInputs
from altermoma.progress import say
from altermoma.pruning.channels import select_groups
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.one_round import batches_needed, score
from altermoma.pruning.prune import PruneResult, prune_by_scores
from altermoma.pruning.surgery import kept_entries, mask
from altermoma.pruning.unstructured import element_scores, global_masks, sparsity_report
from altermoma.recipe import DataRecipe, Precision, PruneRecipe, Recipe
from altermoma.storage import atomic_path, read_json, write_json
from altermoma.training.losses import task_loss
from altermoma.workflow.graphs import export_bundle
from altermoma.workflow.place import Workplace

RECIPE = PruneRecipe(
    channel_step=16,
    lidar_channel_step=8,
    score_batches=2,
    reactivation_batches=2,
    reri_batches=1,
    reactivation_lr=1e-6,
    batch_size=1,
)
"""Few frames, one per batch; widths in the steps of a CPU. Untrained weights have steep losses: a small step."""


def of_frames(count: int) -> PruneRecipe:
    """The recipe with so many frames for the contribution and for the reactivation."""
    return dataclasses.replace(RECIPE, score_batches=count, reactivation_batches=count)


SPARSITIES = (0.8, 0.85, 0.9)

SYNTHETIC = Path("synthetic")
"""In place of the folder of the real frame: one of the synthetic world."""

app = typer.Typer(pretty_exceptions_enable=False)
Preset = Annotated[str, typer.Option(help="Name of the model.")]
Data = Annotated[Path, typer.Option(help="Folder with nuscenes_one_frame and nuscenes_ten_sweeps.bin.")]
Runs = Annotated[Path, typer.Option(help="Folder of the results.")]
Amount = Annotated[float, typer.Option(help="Share of the FLOPs to remove; 0 for the dense model.")]
Precise = Annotated[str, typer.Option(help="fp32 or fp16.")]
Frames = Annotated[int, typer.Option(help="Frames that the scores are made of.")]
Timed = Annotated[bool, typer.Option(help="Prune where time is: greedily, by profile.json of the dense model.")]


def label(amount: float, *, timed: bool = False) -> str:
    """How files of a budget are called."""
    return f"{'timed' if timed else 'pruned'}-{100 * amount:.1f}" if amount > 0 else "dense"


def real_frame(data: Path) -> Frame:
    """The real frame with the cloud of ten sweeps (of another scene) in place of its own single sweep."""
    if data == SYNTHETIC:
        place = Workplace(Recipe(data=DataRecipe(sweeps=10)))
        return place.reader.read(place.val.tokens[0])
    reader = NuScenesReader(data / "nuscenes_one_frame", "v1.0-mini", sweeps=1)
    sweeps = np.fromfile(data / "nuscenes_ten_sweeps.bin", np.float16).reshape(-1, 5)
    return dataclasses.replace(reader.read(reader.tokens("mysplit")[0]), points_p5=sweeps.astype(np.float32))


def batch_of(frame: Frame, model: FusionModel) -> FrameBatch:
    return collate([FramePreparer(model.config.geometry).prepare(frame)], model.config.geometry)


def dense_model(preset: str, frame: Frame) -> FusionModel:
    """Weights of the package where it has some, else random ones."""
    if (WEIGHTS / f"{preset}.safetensors").is_file():
        return model_from_checkpoint(bundled_checkpoint(preset))
    return random_model(preset, lambda model: batch_of(frame, model))


def scoring_batches(frame: Frame, model: FusionModel, recipe: PruneRecipe) -> list[tuple[FrameBatch, list[Boxes]]]:
    """The frame as it is, then moved as in training: as many frames as the scores take."""
    geometry, truth = model.config.geometry, frame.truth or Boxes.empty()
    preparer, rng = FramePreparer(geometry), np.random.default_rng(0)
    found: list[tuple[StageInputs, Boxes]] = [(preparer.prepare(frame), truth)]
    while len(found) < batches_needed(recipe):
        moved = Augment().matrix(rng)
        found.append((preparer.prepare(frame, lidar_aug_44=moved), move_boxes(truth, moved)))
    ground = model.config.map
    if ground is not None:
        # No masks belong to the frame. Nothing was learned either, so that any will do.
        shape = 1, ground.classes, ground.cells, ground.cells
        for inputs, _ in found:
            inputs[MAP_TRUTH] = (rng.random(shape) < 0.3).astype(np.float32)
    return [(collate([inputs], geometry), [boxes]) for inputs, boxes in found]


@contextmanager
def measured(record: dict[str, Any]) -> Iterator[None]:
    """Adds seconds of wall clock and of the processor, and the peak memory of the process in GiB."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    record["seconds"] = round(time.perf_counter() - wall, 1)
    record["processor_seconds"] = round(time.process_time() - processor, 1)
    record["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    record["threads"] = torch.get_num_threads()
    record["load_1min"] = round(os.getloadavg()[0], 1)


@app.command("score")
def score_step(*, preset: Preset, data: Data, runs: Runs, frames: Frames = 2) -> None:
    """AlterMOMA scores of every channel group, with the time and memory that they take."""
    frame = real_frame(data)
    model = dense_model(preset, frame)
    recipe = of_frames(frames)
    batches = scoring_batches(frame, model, recipe)
    groups = select_groups(fusion_groups(model), recipe.scope)
    record: dict[str, Any] = {"preset": preset, "recipe": dataclasses.asdict(recipe)}
    record["voxels"] = [len(batch["voxels"]) for batch, _ in batches if "voxels" in batch.tensors]
    with measured(record):
        scores = score(model, groups, batches, recipe, task_loss)
    save_checkpoint(runs / preset / "dense.safetensors", model.state_dict(), {"preset": preset})
    with atomic_path(runs / preset / "scores.safetensors") as draft:
        save_file(scores, draft)
    write_json(runs / preset / "score.json", record)
    say(f"{preset}: scored in {record['seconds']} s, {record['peak_gib']} GiB")


@app.command("prune")
def prune_step(*, preset: Preset, data: Data, runs: Runs, amount: Amount, timed: Timed = False) -> None:
    """Removes a share of the FLOPs by the scores: widths, costs, and mask equivalence. 0 counts the dense model."""
    folder, frame, name = runs / preset, real_frame(data), label(amount, timed=timed)
    model = model_from_checkpoint(folder / "dense.safetensors")
    batch = batch_of(frame, model)
    record: dict[str, Any] = {"preset": preset, "amount": amount}
    with measured(record):
        recipe = dataclasses.replace(RECIPE, amount=amount, selection="greedy" if timed else "threshold")
        layer_ms = read_json(folder / "profile.json")["layer_ms"] if timed else None
        result = prune_by_scores(model, load_file(folder / "scores.safetensors"), recipe, batch, layer_ms)
    record |= result.to_json()
    record["layers"] = [dataclasses.asdict(layer) for layer in result.flops_after.layers]
    if amount > 0:
        record["mask_equivalence"] = mask_equivalence(model, result, batch)
        kept = {name: channels.tolist() for name, channels in result.keep.items()}
        metadata = {"preset": preset, "kept": kept}
        save_checkpoint(folder / f"{name}.safetensors", result.model.state_dict(), metadata)
    write_json(folder / f"{name}-prune.json", record)


@torch.no_grad()
def mask_equivalence(dense: FusionModel, result: PruneResult[FusionModel], batch: FrameBatch) -> dict[str, float]:
    """Largest difference of the shrunk model to the dense one with those channels at zero, over the largest value.

    Both heads get the masked model's map: a rounding that swaps two proposals says nothing about the surgery.
    """
    masked, shrunk = mask(dense, result.groups, result.keep), result.model
    reader = "bbox_head.shared_conv.weight"
    kept = kept_entries(result.groups, result.keep, reader, 1, dense.get_parameter(reader).shape[1])
    bev, smaller = (model.fuse(model.camera_branch(batch), model.lidar_branch(batch)) for model in (masked, shrunk))
    expected, found = masked.bbox_head(bev), shrunk.bbox_head(bev[:, kept])
    pairs = {field.name: (getattr(expected, field.name), getattr(found, field.name)) for field in fields(expected)}
    pairs["bev"] = bev[:, kept], smaller
    return {name: float((a - b).abs().max()) / max(float(a.abs().max()), 1e-12) for name, (a, b) in pairs.items()}


@app.command("masks")
def masks_step(*, preset: Preset, data: Data, runs: Runs, frames: Frames = 2) -> None:
    """Unstructured masks of the paper's sparsities by element-wise scores: what is gone, by partition and layer."""
    folder, frame = runs / preset, real_frame(data)
    model = model_from_checkpoint(folder / "dense.safetensors")
    recipe = of_frames(frames)
    batches = scoring_batches(frame, model, recipe)
    record: dict[str, Any] = {"preset": preset, "recipe": dataclasses.asdict(recipe), "sparsities": {}}
    with measured(record):
        scores = element_scores(model, batches, recipe, task_loss)
        for sparsity in SPARSITIES:
            report = sparsity_report(model, global_masks(model, scores, sparsity))
            record["sparsities"][str(sparsity)] = dataclasses.asdict(report)
    write_json(folder / "masks.json", record)


@app.command("export")
def export_step(
    *, preset: Preset, data: Data, runs: Runs, amount: Amount, precision: Precise = "fp32", timed: Timed = False
) -> None:
    """A bundle of the dense or a pruned model, checked on the frame of ten sweeps; with its time and memory."""
    folder, name = runs / preset, label(amount, timed=timed)
    checkpoint, bundle = folder / f"{name}.safetensors", folder / f"{name}-{precision}"
    recipe = Recipe(
        name=f"{preset}-{name}",
        model=preset,
        checkpoint=str(checkpoint),
    )
    place = Workplace(recipe)
    model = model_from_checkpoint(checkpoint)
    record: dict[str, Any] = {"preset": preset, "amount": amount, "precision": precision}
    with measured(record):
        found = export_bundle(place, model, (cast(Precision, precision),), bundle, {}, frame=real_frame(data))
    record["parity"] = found[precision]
    graphs = sorted((bundle / "stages" / precision).glob("*.onnx"))
    record["onnx_mib"] = {path.stem: round(path.stat().st_size / 2**20, 2) for path in graphs}
    write_json(folder / f"{name}-{precision}-export.json", record)
    say(f"{preset} {name} {precision}: exported in {record['seconds']} s, {record['peak_gib']} GiB")


if __name__ == "__main__":
    app()
