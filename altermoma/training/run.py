"""One training run: what a step does, what it leaves behind, and when that is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor, nn

from altermoma.data.dataset import Sample
from altermoma.errors import AltermomaError
from altermoma.models.devices import device_of
from altermoma.models.fusion import FusionModel
from altermoma.models.ranks import Ranks
from altermoma.models.synced_norm import SyncedNorms
from altermoma.recipe import ComputeRecipe, TrainRecipe
from altermoma.storage import content_key
from altermoma.training.figures import combined
from altermoma.training.loader import TrainingSet
from altermoma.training.log import LOG_FILE, append, open_log
from altermoma.training.masks import WeightMasks
from altermoma.training.objective import DetectionObjective, Objective
from altermoma.training.precision import LossScale, mixed
from altermoma.training.schedule import apply_schedule, build_optimiser
from altermoma.training.state import STATE_FILE, AveragedWeights, TrainingState, weights_digest

SHARED_FOLDER = "give every process the same command; they need one folder that all of them reach"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run is to do: it decides the weights, but for rounding. `data` says what frames are besides tokens."""

    recipe: TrainRecipe
    compute: ComputeRecipe
    objective: Objective
    masks: WeightMasks
    data: Mapping[str, object]

    def fingerprint(self, model: nn.Module, dataset: TrainingSet) -> str:
        """Content key; how often states are saved, and where it is computed, do not change the result."""
        recipe = {k: v for k, v in dataclasses.asdict(self.recipe).items() if k != "checkpoint_every"}
        identity: dict[str, object] = {
            "recipe": recipe,
            "frames": list(dataset.tokens),
            "weights": weights_digest(model.state_dict()),
        }
        if self.data:
            identity["data"] = dict(self.data)
        if self.masks.gone:
            identity["masks"] = weights_digest(self.masks.gone)
        if isinstance(self.objective, DetectionObjective) and self.objective.teacher is not None:
            identity["teacher"] = weights_digest(self.objective.teacher.model.state_dict())
        if self.compute.precision != "fp32":
            identity["precision"] = self.compute.precision
        if self.compute.accumulate > 1:
            identity["accumulate"] = self.compute.accumulate
        return content_key(identity)


class Run:
    """A run in one of its processes, begun or taken up again in `folder`.

    Raises:
        CheckpointError: the folder holds another run.
        AltermomaError: the processes do not agree on what to do.
    """

    def __init__(self, model: FusionModel, dataset: TrainingSet, asked: Asked, folder: Path) -> None:
        self.model, self.asked, self.recipe, self.folder = model, asked, asked.recipe, folder
        self.ranks, self.device = Ranks.here(), device_of(model)
        self.averaged = AveragedWeights.of(model, self.recipe.ema_decay) if self.recipe.ema_decay > 0 else None
        self.optimiser = build_optimiser(model.named_parameters(), self.recipe)
        self.scale = LossScale.of(asked.compute.precision)
        self.state = TrainingState(
            fingerprint=asked.fingerprint(model, dataset),
            model=model,
            optimiser=self.optimiser,
            averaged=self.averaged,
            scale=self.scale,
        )
        self.ranks.agree({"recipe, data or initial weights": self.state.fingerprint}, SHARED_FOLDER)
        self.done = self.state.load(folder / STATE_FILE)
        self.ranks.agree({"the steps done before": self.done}, SHARED_FOLDER)

    @property
    def log(self) -> Path:
        return self.folder / LOG_FILE

    @contextlib.contextmanager
    def recorded(self) -> Iterator[TextIO | None]:
        """The open log, in the process that writes."""
        if not self.ranks.first:
            yield None
            return
        with open_log(self.log, self.done) as stream:
            yield stream

    def advance(self, parts: Sequence[Sequence[Sample]]) -> dict[str, float]:
        """One optimiser step on this process's frames, part by part; returns the figures of its log line.

        Raises:
            AltermomaError: losses or gradients are not finite.
        """
        started, step = time.monotonic(), self.done
        self._seed(step)
        rate = apply_schedule(self.optimiser, step, self.recipe)
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        before = self._statistics()
        figures = self._gradients(parts)
        norm = self._clipped()
        if self.scale is None:
            self._check_finite(figures, parts)
            self._check_finite({"gradient norm": norm}, parts)
            self._apply(step)
        else:
            figures |= self._apply_if_finite(step, norm, before, self.scale)
        self.done = step + 1
        seconds = time.monotonic() - started
        return {"step": step, **figures, "lr": rate, "grad_norm": norm, "seconds": round(seconds, 4)}

    def _seed(self, step: int) -> None:
        """Random numbers of a step, other ones in each process."""
        entropy = (self.recipe.seed, 2, step, *([self.ranks.rank] if self.ranks.rank else []))
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def _gradients(self, parts: Sequence[Sequence[Sample]]) -> dict[str, float]:
        """Sums the gradients of all parts and processes; returns the figures of all of them."""
        found = []
        for samples in parts:
            synced = SyncedNorms() if self.ranks.size > 1 else contextlib.nullcontext()
            with synced, mixed(self.device, self.asked.compute.precision):
                terms = self.asked.objective(self.model, samples)
            found.append(terms.parts())
            loss = terms.total if len(parts) == 1 else terms.total / len(parts)
            if self.scale is not None:
                loss = loss * self.scale.value
            loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.add_gradients(self._trained())
        return combined(found, self.ranks, self.device)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _clipped(self) -> float:
        """Norm of the gradients before they were clipped, without the factor of fp16."""
        if self.scale is not None:
            for parameter in self._trained():
                if parameter.grad is not None:
                    parameter.grad.div_(self.scale.value)
        self.asked.masks.on_gradients(self.model)
        return float(nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip))

    def _apply(self, step: int) -> None:
        self.optimiser.step()
        self.asked.masks.on_weights(self.model)
        if self.averaged is not None:
            self.averaged.update(self.model, step)
            self.asked.masks.on_tensors(self.averaged.tensors)

    def _apply_if_finite(
        self, step: int, norm: float, before: Mapping[str, Tensor], scale: LossScale
    ) -> dict[str, float]:
        """Leaves out a step whose gradients overflowed in fp16; returns the figures of its log line."""
        finite = math.isfinite(norm)
        figures = {"loss_scale": scale.value, "skipped": float(not finite)}
        if finite:
            self._apply(step)
        else:
            self._restore(before)
        scale.update(finite)
        return figures

    def _statistics(self) -> dict[str, Tensor]:
        """Buffers as they are, where a step may have to be taken back."""
        return {} if self.scale is None else {name: b.detach().clone() for name, b in self.model.named_buffers()}

    @torch.no_grad()
    def _restore(self, statistics: Mapping[str, Tensor]) -> None:
        """Buffers as they were: a forward pass that overflowed has left infinite statistics in the norms."""
        for name, buffer in self.model.named_buffers():
            buffer.copy_(statistics[name])

    def _check_finite(self, figures: Mapping[str, float], parts: Sequence[Sequence[Sample]]) -> None:
        broken = [f"{name} = {value}" for name, value in figures.items() if not math.isfinite(value)]
        if broken:
            tokens = [sample.token for part in parts for sample in part]
            frames = [token for found in self.ranks.gathered(tokens) for token in found]
            raise AltermomaError(
                f"training diverged at step {self.done}: {', '.join(broken)} on frames {', '.join(frames)}",
                expected="finite losses and gradients",
                remedy=f"halve the learning rate ({self.recipe.lr:g}) or lower grad_clip ({self.recipe.grad_clip:g}) "
                "and start in a fresh folder; if it is always the same frames, check their sensor files",
            )

    def record(self, log: TextIO | None, figures: dict[str, float]) -> None:
        """Writes the log line, and the state every `checkpoint_every` steps and after the last."""
        if log is not None:
            append(log, self.log, figures)
        if self.done % self.recipe.checkpoint_every and self.done != self.recipe.steps:
            return
        if self.ranks.size > 1:
            digest = weights_digest(self.model.state_dict())
            self.ranks.agree({"the weights": digest}, "report it: training again from the last state is sound")
        if log is not None:
            log.flush()
            self.state.save(self.folder / STATE_FILE, self.done)

    def weights(self) -> Mapping[str, Tensor]:
        """State dict that training would return now."""
        return self.model.state_dict() if self.averaged is None else self.averaged.tensors
