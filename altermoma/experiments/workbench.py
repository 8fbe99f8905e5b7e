"""What a cell is made with: data, dense model, scoring frames, and the four steps score, cut, fine-tune, evaluate."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from altermoma.data.dataset import FrameDataset
from altermoma.evaluation.nuscenes_eval import evaluate
from altermoma.evaluation.predict import predict
from altermoma.experiments.cells import TIMED, Cell
from altermoma.experiments.recipe import ExperimentRecipe
from altermoma.models.batch import collate
from altermoma.models.fusion import FusionModel
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.latency import StageTable
from altermoma.pruning.masking import Batch, on_device_of
from altermoma.pruning.methods.choose import batches_of, scores_of
from altermoma.pruning.methods.work import channel_work, weight_work
from altermoma.pruning.prune import prune_by_scores
from altermoma.pruning.unstructured import Masks, global_masks, masked_model, sparsity_report
from altermoma.recipe import DataRecipe, PruneRecipe
from altermoma.storage import content_key, sha256_of, write_bytes
from altermoma.training.loop import TrainResult, train
from altermoma.training.losses import task_loss
from altermoma.workflow.compress import latency_tables, reference_batch
from altermoma.workflow.given_tables import LATENCY, latency_record
from altermoma.workflow.keys import data_key
from altermoma.workflow.place import Workplace
from altermoma.workflow.rounds import round_training
from altermoma.workflow.scoring import scoring_batches, with_open_keys_filled
from altermoma.workflow.stage_times import TimedStage, least_ms, timed_stages

LOSS_FRAMES = 8
"""Validation frames on which the task loss right after cutting is taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruned:
    """A cut model and how it came about; `masks` are empty where channels are gone."""

    model: FusionModel
    masks: Masks
    removed: Mapping[str, Any]


class Workbench:
    """Opens what the cells of one experiment share, on first use.

    Args:
        recipe: the experiment.
        folder: takes scores and unfinished training.
    """

    def __init__(self, recipe: ExperimentRecipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.place = Workplace(with_open_keys_filled(recipe.base()))

    @cached_property
    def ground(self) -> dict[str, Any]:
        """What every cell stands on besides its own options."""
        data, usual = dataclasses.asdict(self.recipe.data), dataclasses.asdict(DataRecipe())
        # Only where they are not the default, so that cells from before they counted stay.
        changed = {key: data[key] for key in ("repeat_key", "map_masks") if data[key] != usual[key]}
        return {
            "checkpoint": sha256_of(self.place.checkpoint),
            "tables": data_key(self.place.root, self.recipe.data.version),
            "data": {key: data[key] for key in ("version", "train_split", "val_split", "sweeps")} | changed,
            "granularity": self.recipe.granularity,
            "threshold": self.recipe.prune.threshold,
            "val_frames": self.recipe.val_frames,
            **({TIMED: "onnxruntime"} if self.recipe.timed else {}),
        }

    @cached_property
    def dense(self) -> FusionModel:
        return self.place.dense_model()

    @cached_property
    def val(self) -> FrameDataset:
        if not self.recipe.val_frames:
            return self.place.val
        tokens = self.place.reader.tokens(self.recipe.data.val_split)
        chosen = np.linspace(0, len(tokens) - 1, min(self.recipe.val_frames, len(tokens))).round().astype(int)
        return FrameDataset(self.place.reader, [tokens[i] for i in chosen], self.place.geometry)

    @cached_property
    def _loss_batches(self) -> list[Batch]:
        chosen = np.linspace(0, len(self.val) - 1, min(LOSS_FRAMES, len(self.val))).round().astype(int)
        samples = [self.val[int(index)] for index in chosen]
        return [(collate([sample.inputs], self.place.geometry), [sample.truth]) for sample in samples]

    def loss(self, model: FusionModel) -> float:
        """Task loss on a few validation frames, in eval mode."""
        model.eval()
        with torch.no_grad():
            found = [
                float(task_loss(model, on_device_of(model, inputs), truths)) for inputs, truths in self._loss_batches
            ]
        return float(np.mean(found))

    def accuracy(self, model: FusionModel) -> dict[str, float]:
        """Official mAP and NDS on the validation split; on a part of it, frames that are left out count as empty."""
        found = evaluate(self.place.reader, self.recipe.data.val_split, self._complete(predict(model, self.val)))
        return {"mAP": found.mAP, "NDS": found.NDS}

    def _complete(self, detections: Mapping[str, Any]) -> dict[str, Any]:
        from altermoma.frames import Boxes

        tokens = self.place.reader.tokens(self.recipe.data.val_split)
        return {token: detections.get(token, Boxes.empty()) for token in tokens}

    def kept_scores(self, cell: Cell) -> ChannelVectors | None:
        """Scores that an earlier cell left; None where there are none."""
        return self.scores(cell)[0] if self._scores_file(cell).is_file() else None

    def _scores_file(self, cell: Cell) -> Path:
        return self.folder / "scores" / f"{cell.scoring_key(self.ground)}.safetensors"

    def scores(self, cell: Cell) -> tuple[ChannelVectors, float | None]:
        """Scores of a cell and the processor time they took, from the folder where an earlier cell left them.

        None where training between rounds went on from a killed process: what that took is not known.
        """
        from safetensors import safe_open
        from safetensors.torch import save

        path = self._scores_file(cell)
        if path.is_file():
            with safe_open(path, framework="pt") as stream:
                told = (stream.metadata() or {}).get("seconds")
                found = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            return found, None if told is None else float(told)
        recipe = cell.prune
        batches: Sequence[Batch] = scoring_batches(self.place, recipe) if batches_of(recipe) else ()
        by_weight = partial(weight_work, per=self.recipe.prune.threshold)
        by_channel = partial(channel_work, tables=self._tables_for(recipe))
        make = by_weight if self.recipe.granularity == "weights" else by_channel
        work = make(self.dense, batches, recipe, task_loss, reference_batch(self.place))
        rounds = dataclasses.replace(cell.finetune, steps=cell.prune.imp_steps)
        resumed = self._rounds(cell).is_dir()
        training = round_training(self.place, rounds, self._rounds(cell))
        scored = scores_of(dataclasses.replace(work, retrain=training))
        plain = {name: vector.contiguous() for name, vector in scored.scores.items()}
        seconds = None if resumed else scored.seconds
        write_bytes(path, save(plain, metadata={} if seconds is None else {"seconds": f"{seconds:.3f}"}))
        return scored.scores, seconds

    def cut(self, recipe: PruneRecipe, scores: ChannelVectors) -> Pruned:
        """The dense model without what scores least; the dense model itself stays."""
        if self.recipe.granularity == "weights":
            masks = global_masks(self.dense, scores, recipe.amount, per=self.recipe.prune.threshold)
            report = sparsity_report(self.dense, masks)
            removed = {"weights": report.total, "by_partition": report.by_partition, "by_layer": report.by_layer}
            return Pruned(model=masked_model(self.dense, masks), masks=masks, removed=removed)
        tables, reference = self._tables_for(recipe), reference_batch(self.place)
        found = prune_by_scores(self.dense, scores, recipe, reference, tables=tables)
        removed = found.to_json()
        if tables is not None and recipe.latency_tables:
            given = dataclasses.replace(self.place.recipe, prune=recipe)
            removed[LATENCY] = latency_record(given, tables, found.flops_before, found.flops_after)
        return Pruned(model=found.model, masks={}, removed=removed)

    def _tables_for(self, recipe: PruneRecipe) -> Mapping[str, StageTable] | None:
        """Milliseconds of the dense model's stages at several widths, where the budget asks for them; measured once for
        all cells of a ground.
        """
        if recipe.budget != "latency":
            return None
        return latency_tables(self.place, self.dense, self.folder / "latency" / f"{content_key(self.ground)}.json")

    @cached_property
    def _dense_stages(self) -> Mapping[str, TimedStage]:
        return timed_stages(self.place, self.place.model_on_host(self.place.checkpoint))

    def stage_ms(self, model: FusionModel) -> dict[str, dict[str, float]]:
        """Milliseconds of every stage, of the dense model and of a cut one, both in turns in this process."""
        cut, dense = timed_stages(self.place, copy.deepcopy(model).cpu()), self._dense_stages
        found = least_ms({name: [dense[name], cut[name]] for name in dense})
        return {
            "dense": {name: times[0] for name, times in found.items()},
            "cut": {name: times[1] for name, times in found.items()},
        }

    def fine_tune(self, cell: Cell, pruned: Pruned) -> TrainResult:
        return train(
            pruned.model,
            self.place.train,
            cell.finetune,
            folder=self._training(cell),
            masks=pruned.masks or None,
            compute=self.place.recipe.compute,
        )

    def _training(self, cell: Cell) -> Path:
        return self.folder / "training" / cell.key(self.ground)

    def _rounds(self, cell: Cell) -> Path:
        return self.folder / "rounds" / cell.scoring_key(self.ground)

    def run(self, cell: Cell) -> dict[str, Any]:
        """The record of a cell; unfinished training is continued, and removed in the end.

        `seconds` is the processor time of everything that the cell stands on, its scores included whoever made them;
        None where a killed process did a part of it. Records from before that have what the last process took.
        """
        scores, scoring_seconds = self.scores(cell)
        started = time.process_time()
        pruned = self.cut(cell.prune, scores)
        loss_cut = self.loss(pruned.model)
        times = {"stage_ms": self.stage_ms(pruned.model)} if self.recipe.timed else {}
        tuned = self.fine_tune(cell, pruned)
        record = {
            "label": cell.label,
            "method": cell.prune.method,
            "amount": cell.amount,
            "seed": cell.seed,
            "loss_cut": loss_cut,
            "loss": self.loss(tuned.model),
            **self.accuracy(tuned.model),
            "removed": dict(pruned.removed),
            **times,
            "scoring_seconds": scoring_seconds,
            "seconds": None,
        }
        if scoring_seconds is not None and tuned.resumed_from == 0:
            record["seconds"] = scoring_seconds + time.process_time() - started
        for unfinished in (self._training(cell), self._rounds(cell)):
            shutil.rmtree(unfinished, ignore_errors=True)
        return record
