"""The training and fine-tuning loop: one process or several, resumable to the bit.

Everything random in a step (frames, augmentation, dropout) is seeded by (seed, step), so a state of weights, optimiser
and step count is enough to go on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from altermoma.errors import DataError, RecipeError
from altermoma.models.fusion import FusionModel
from altermoma.progress import track
from altermoma.recipe import ComputeRecipe, TrainRecipe
from altermoma.training.heap import keep_freed_memory
from altermoma.training.loader import TrainingSet, living_readers, training_batches
from altermoma.training.masks import WeightMasks
from altermoma.training.objective import Objective, detection_objective
from altermoma.training.precision import tensor_cores
from altermoma.training.run import Asked, Run

__all__ = ["Objective", "OnStep", "StepReport", "TrainResult", "TrainingSet", "detection_objective", "train"]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What `on_step` is told after each step.

    Attributes:
        step: steps done so far, 1 after the first.
        weights: gives the state dict that training would return now (averaged where the recipe asks for it).
    """

    step: int
    steps: int
    figures: Mapping[str, float]
    weights: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The trained model, in eval mode, and where its record is.

    Attributes:
        resumed_from: steps that an earlier, interrupted run had done; 0 for a fresh one.
        seconds: of this run alone.
    """

    model: FusionModel
    steps: int
    resumed_from: int
    seconds: float
    log: Path


OnStep = Callable[[StepReport], None]


def train(  # noqa: PLR0913 - all but the first three are named where they are given
    model: FusionModel,
    dataset: TrainingSet,
    recipe: TrainRecipe,
    *,
    folder: Path,
    on_step: OnStep | None = None,
    objective: Objective | None = None,
    masks: Mapping[str, Tensor] | None = None,
    compute: ComputeRecipe | None = None,
    data: Mapping[str, object] | None = None,
) -> TrainResult:
    """Trains `model` in place for `recipe.steps` steps, or the rest of them if `folder` holds an interrupted run.

    Where several processes have joined (`models.ranks.process_group`), each calls this with the same arguments and
    computes its share of every batch; the first of them writes.

    Args:
        model: a FusionModel, on the device it is to be trained on; parameters without `requires_grad` stay as they are.
        dataset: training frames, with augmentation if `recipe.augment` asks for it: the caller builds it so.
        recipe: steps, rates, masked branch.
        folder: takes the resumable state and the log.
        on_step: called after every step, in every process.
        objective: loss of a batch; the detection loss of a fusion model where left out.
        masks: by parameter name, bool of its shape, False where the weight is and stays exactly zero: before the first
            step, after each one, in the averaged weights.
        compute: precision, parts of a batch and readers; its device is the model's, whatever it says.
        data: JSON-serialisable, what decides the frames besides their tokens; a run goes on only with the same.

    Raises:
        AltermomaError: the loss or its gradient is not finite, or processes do not agree.
        CheckpointError: `folder` holds the state of another run.
        DataError: there is nothing to train on.
        PruningError: masks that do not fit the model.
    """
    compute = compute or ComputeRecipe()
    _check(recipe, dataset)
    keep_freed_memory()
    started = time.monotonic()
    weight_masks = WeightMasks.of(model, masks)
    weight_masks.on_weights(model)
    asked = Asked(
        recipe=recipe,
        compute=compute,
        objective=objective or detection_objective(recipe),
        masks=weight_masks,
        data=data or {},
    )
    run = Run(model, dataset, asked, folder)
    resumed_from = run.done
    with contextlib.closing(_steps(run, dataset)) as steps:
        for figures in steps:
            if on_step is not None:
                on_step(StepReport(step=run.done, steps=recipe.steps, figures=figures, weights=run.weights))
    model.load_state_dict(run.weights())
    model.eval()
    seconds = time.monotonic() - started
    return TrainResult(model=model, steps=recipe.steps, resumed_from=resumed_from, seconds=seconds, log=run.log)


def _steps(run: Run, dataset: TrainingSet) -> Generator[dict[str, float], None, None]:
    """Does what is left of a run, step by step; yields the figures of each."""
    recipe, compute, device = run.recipe, run.asked.compute, run.device
    with (
        run.recorded() as log,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        tensor_cores(device, compute.precision),
        living_readers(),
    ):
        left = range(run.done, recipe.steps)
        batches = training_batches(dataset, recipe, compute, left, device)
        for parts in track(batches, "Training", total=len(left)):
            figures = run.advance(parts)
            run.record(log, figures)
            yield figures


def _check(recipe: TrainRecipe, dataset: TrainingSet) -> None:
    if recipe.steps > 0 and len(dataset) == 0:
        raise DataError("the training split has no frames", remedy="check data.train_split")
    limits = {
        "batch_size": recipe.batch_size >= 1,
        "checkpoint_every": recipe.checkpoint_every >= 1,
        "lr": recipe.lr > 0,
        "grad_clip": recipe.grad_clip > 0,
        "ema_decay": 0 <= recipe.ema_decay < 1,
        "warmup_share": 0 <= recipe.warmup_share <= 1,
        "match_radius": recipe.match_radius >= 0,
    }
    for name, fine in limits.items():
        if not fine:
            raise RecipeError(f"{name} = {getattr(recipe, name)}", expected="a value that training can work with")
