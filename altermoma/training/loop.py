"""The training and fine-tuning loop: one process, resumable to the bit.

Everything random in a step (frames, augmentation, dropout) is seeded by (seed, step), so a state of weights, optimiser
and step count is enough to go on as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from altermoma.data.dataset import Sample, prefetch
from altermoma.errors import AltermomaError, DataError, RecipeError
from altermoma.models.batch import collate
from altermoma.models.devices import device_of
from altermoma.models.fusion import FusionModel
from altermoma.progress import track
from altermoma.recipe import TrainRecipe
from altermoma.storage import content_key
from altermoma.training.depth import captured_depth_logits, depth_loss
from altermoma.training.distill import Teacher, captured_maps
from altermoma.training.heap import keep_freed_memory
from altermoma.training.log import LOG_FILE, append, open_log
from altermoma.training.losses import LossTerms, detection_loss
from altermoma.training.map_loss import map_term
from altermoma.training.masks import WeightMasks
from altermoma.training.schedule import apply_schedule, build_optimiser
from altermoma.training.state import STATE_FILE, AveragedWeights, load_state, save_state, weights_digest
from altermoma.training.targets import MatchCosts


class TrainingSet(Protocol):
    """Frames in batches whose content, augmentation included, is a pure function of (seed, step): see FrameDataset."""

    @property
    def tokens(self) -> Sequence[str]:
        """Names of the frames: a run is tied to them."""
        ...

    def __len__(self) -> int: ...

    def batch(self, step: int, *, batch_size: int, seed: int) -> list[Sample]: ...


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


Objective = Callable[[FusionModel, Sequence[Sample]], LossTerms]
OnStep = Callable[[StepReport], None]


def detection_objective(recipe: TrainRecipe, teacher: Teacher | None = None) -> Objective:
    """The loss of boxes and map on the model's device, with depth supervision and a teacher if asked for."""
    costs = MatchCosts(radius=recipe.match_radius)

    def objective(model: FusionModel, samples: Sequence[Sample]) -> LossTerms:
        geometry = model.config.geometry
        batch = collate([sample.inputs for sample in samples], geometry).to(device_of(model))
        with captured_depth_logits(model) as logits, captured_maps(model) as maps:
            outputs = model(batch, masked=recipe.masked)
        terms = detection_loss(outputs, [sample.truth for sample in samples], geometry, costs=costs)
        ground = map_term(outputs, batch)
        if ground is not None:
            terms = terms.plus(map=ground)
        if logits and recipe.depth_weight > 0:
            terms = terms.plus(depth=recipe.depth_weight * depth_loss(logits[0], batch["depth"], geometry))
        if teacher is not None and recipe.distill_weight > 0:
            terms = terms.plus(teacher=recipe.distill_weight * teacher.loss(batch, maps))
        return terms

    return objective


def train(  # noqa: PLR0913 - all but the first three are named where they are given
    model: FusionModel,
    dataset: TrainingSet,
    recipe: TrainRecipe,
    *,
    folder: Path,
    on_step: OnStep | None = None,
    objective: Objective | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> TrainResult:
    """Trains `model` in place for `recipe.steps` steps, or the rest of them if `folder` holds an interrupted run.

    Args:
        model: a FusionModel; parameters without `requires_grad` stay as they are.
        dataset: training frames, with augmentation if `recipe.augment` asks for it: the caller builds it so.
        recipe: steps, rates, masked branch.
        folder: takes the resumable state and the log.
        on_step: called after every step.
        objective: loss of a batch; the detection loss of a fusion model where left out.
        masks: by parameter name, bool of its shape, False where the weight is and stays exactly zero: before the first
            step, after each one, in the averaged weights.

    Raises:
        AltermomaError: the loss or its gradient is not finite.
        CheckpointError: `folder` holds the state of another run.
        DataError: there is nothing to train on.
        PruningError: masks that do not fit the model.
    """
    _check(recipe, dataset)
    keep_freed_memory()
    started = time.monotonic()
    weight_masks = WeightMasks.of(model, masks)
    weight_masks.on_weights(model)
    run = _Run.begin(model, dataset, recipe, folder, objective or detection_objective(recipe), weight_masks)
    resumed_from = run.done
    device = device_of(model)
    random_devices = [device] if device.type == "cuda" else []
    with open_log(run.log, run.done) as stream, torch.random.fork_rng(devices=random_devices):
        steps = range(run.done, recipe.steps)
        batches = (dataset.batch(step, batch_size=recipe.batch_size, seed=recipe.seed) for step in steps)
        for samples in track(prefetch(batches), "Training", total=len(steps)):
            figures = run.advance(samples)
            append(stream, run.log, figures)
            run.save_if_due(stream)
            if on_step is not None:
                on_step(StepReport(step=run.done, steps=recipe.steps, figures=figures, weights=run.weights))
    model.load_state_dict(run.weights())
    model.eval()
    seconds = time.monotonic() - started
    return TrainResult(model=model, steps=recipe.steps, resumed_from=resumed_from, seconds=seconds, log=run.log)


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


@dataclass(kw_only=True)
class _Run:
    """What changes while training, and how to save it."""

    model: FusionModel
    recipe: TrainRecipe
    folder: Path
    objective: Objective
    optimiser: torch.optim.AdamW
    averaged: AveragedWeights | None
    masks: WeightMasks
    fingerprint: str
    done: int = 0

    @staticmethod
    def begin(
        model: FusionModel,
        dataset: TrainingSet,
        recipe: TrainRecipe,
        folder: Path,
        objective: Objective,
        masks: WeightMasks,
    ) -> _Run:
        optimiser = build_optimiser(model.named_parameters(), recipe)
        averaged = AveragedWeights.of(model, recipe.ema_decay) if recipe.ema_decay > 0 else None
        # How often states are saved does not change the result.
        asked = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "checkpoint_every"}
        identity = {"recipe": asked, "frames": list(dataset.tokens), "weights": weights_digest(model.state_dict())}
        if masks.gone:
            identity["masks"] = weights_digest(masks.gone)
        fingerprint = content_key(identity)
        run = _Run(
            model=model,
            recipe=recipe,
            folder=folder,
            objective=objective,
            optimiser=optimiser,
            averaged=averaged,
            masks=masks,
            fingerprint=fingerprint,
        )
        run.done = load_state(run.state, fingerprint=fingerprint, model=model, optimiser=optimiser, averaged=averaged)
        return run

    @property
    def state(self) -> Path:
        return self.folder / STATE_FILE

    @property
    def log(self) -> Path:
        return self.folder / LOG_FILE

    def advance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimiser step; returns the figures of its log line."""
        started, step = time.monotonic(), self.done
        torch.manual_seed(int(np.random.SeedSequence((self.recipe.seed, 2, step)).generate_state(1)[0]))
        rate = apply_schedule(self.optimiser, step, self.recipe)
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        terms = self.objective(self.model, samples)
        parts = terms.parts()
        self._check_finite(step, parts, samples)
        terms.total.backward()  # type: ignore[no-untyped-call]
        self.masks.on_gradients(self.model)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip))
        self._check_finite(step, {"gradient norm": norm}, samples)
        self.optimiser.step()
        self.masks.on_weights(self.model)
        if self.averaged is not None:
            self.averaged.update(self.model, step)
            self.masks.on_tensors(self.averaged.tensors)
        self.done = step + 1
        seconds = time.monotonic() - started
        return {"step": step, **parts, "lr": rate, "grad_norm": norm, "seconds": round(seconds, 4)}

    def _check_finite(self, step: int, figures: Mapping[str, float], samples: Sequence[Sample]) -> None:
        broken = [f"{name} = {value}" for name, value in figures.items() if not math.isfinite(value)]
        if broken:
            raise AltermomaError(
                f"training diverged at step {step}: {', '.join(broken)} on frames "
                f"{', '.join(sample.token for sample in samples)}",
                expected="finite losses and gradients",
                remedy=f"halve the learning rate ({self.recipe.lr:g}) or lower grad_clip ({self.recipe.grad_clip:g}) "
                "and start in a fresh folder; if it is always the same frames, check their sensor files",
            )

    def save_if_due(self, log: TextIO) -> None:
        """Saves every `checkpoint_every` steps and after the last, once the log is written out."""
        if self.done % self.recipe.checkpoint_every and self.done != self.recipe.steps:
            return
        log.flush()
        save_state(
            self.state,
            step=self.done,
            fingerprint=self.fingerprint,
            model=self.model,
            optimiser=self.optimiser,
            averaged=self.averaged,
        )

    def weights(self) -> Mapping[str, Tensor]:
        """State dict that training would return now."""
        return self.model.state_dict() if self.averaged is None else self.averaged.tensors
