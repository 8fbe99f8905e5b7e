"""Scoring, pruning and fine-tuning steps."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altermoma.errors import CheckpointError
from altermoma.progress import say
from altermoma.storage import read_json, write_json
from altermoma.workflow.given_tables import LATENCY, given_tables, latency_line, latency_record
from altermoma.workflow.place import Workplace
from altermoma.workflow.rounds import round_training
from altermoma.workflow.scoring import scoring_batches
from altermoma.workflow.sparsity import SPARSITY, check_prunable, masks_of
from altermoma.workflow.steps import peak_memory_mib

if TYPE_CHECKING:
    from altermoma.models.batch import FrameBatch
    from altermoma.models.fusion import FusionModel
    from altermoma.pruning.channels import ChannelVectors
    from altermoma.pruning.latency import StageTable
    from altermoma.pruning.methods.scoring import Scoring
    from altermoma.training.distill import Teacher

PRUNED_FILE = "pruned.safetensors"
TABLES_FILE = "latency.json"


def reference_batch(place: Workplace) -> FrameBatch:
    """The first validation frame: FLOPs are counted on it, and the bundle carries it."""
    from altermoma.models.batch import collate

    return collate([place.val[0].inputs], place.geometry)


def prune_model(place: Workplace, folder: Path) -> dict[str, Any]:
    """Scores and shrinks the dense model, and makes it 2:4 where that is asked for; the weights are kept in the folder.

    A kill costs one batch, or the search of the channels' order.
    """
    from altermoma.checkpoints.io import describe, save_checkpoint
    from altermoma.pruning.prune import prune_by_scores
    from altermoma.pruning.two_four_prune import prune_two_four

    check_prunable(place.recipe, place.checkpoint)
    recipe, unfinished = place.recipe, folder / "scores"
    dense, reference = place.dense_model(), reference_batch(place)
    tables = latency_tables(place, dense, folder / TABLES_FILE) if recipe.prune.budget == "latency" else None
    scores = _channel_scores(place, dense, reference, unfinished, tables) if recipe.prune.amount > 0 else {}
    result = prune_by_scores(dense, scores, recipe.prune, reference, tables=tables)
    record, model = result.to_json() | {"method": recipe.prune.method}, result.model
    if tables is not None:
        record[LATENCY] = latency_record(recipe, tables, result.flops_before, result.flops_after)
        say(latency_line(record[LATENCY]))
    kept = {name: channels.tolist() for name, channels in result.keep.items()}
    metadata = describe(model, recipe.model) | {"pruning": record, "kept": kept}
    if recipe.engine.sparsity == "2:4":
        sparse = prune_two_four(model, recipe.prune.two_four_rule, permute=recipe.prune.two_four_permute)
        model, metadata[SPARSITY] = sparse.model, sparse.to_json()
        record[SPARSITY] = {"kept_before": sparse.kept_before, "kept_after": sparse.kept_after}
    save_checkpoint(folder / PRUNED_FILE, model.state_dict(), metadata)
    shutil.rmtree(unfinished, ignore_errors=True)
    return record


def latency_tables(place: Workplace, model: FusionModel, file: Path) -> Mapping[str, StageTable]:
    """Those that the recipe names; else measured once and kept in `file`: a killed run goes on with the same times."""
    from altermoma.pruning.latency import StageTable
    from altermoma.workflow.stage_times import measure_tables

    if place.recipe.prune.latency_tables:
        return given_tables(place.recipe, model, reference_batch(place))
    if not file.is_file():
        write_json(file, {name: dataclasses.asdict(table) for name, table in measure_tables(place, model).items()})
    return {
        name: StageTable(shares=tuple(table["shares"]), ms=tuple(table["ms"]))
        for name, table in read_json(file).items()
    }


def _channel_scores(
    place: Workplace,
    model: FusionModel,
    reference: FrameBatch,
    folder: Path,
    tables: Mapping[str, StageTable] | None,
) -> ChannelVectors:
    from altermoma.pruning.methods.work import channel_work
    from altermoma.training.losses import task_loss

    work = channel_work(model, scoring_batches(place), place.recipe.prune, task_loss, reference, tables)
    return scored(place, work, folder)


def scored(place: Workplace, work: Scoring, folder: Path) -> ChannelVectors:
    """Scores of the recipe's method; what they took is printed. The folder takes what a kill would lose."""
    from altermoma.pruning.kept import Kept
    from altermoma.pruning.methods.choose import scores_of

    recipe = place.recipe.prune
    rounds = dataclasses.replace(place.recipe.finetune, steps=recipe.imp_steps)
    training = round_training(place, rounds, folder)
    found = scores_of(dataclasses.replace(work, kept=Kept(folder), retrain=training))
    say(f"scores of {recipe.method}: {found.seconds:.1f} s of processor time, at most {peak_memory_mib():.0f} MiB")
    return found.scores


def teacher_of(place: Workplace, pruned: Path, dense_weights: Path | None = None) -> Teacher:
    """The dense model as the teacher of a pruned one, channel by channel.

    Args:
        place: gives the dense model, unless `dense_weights` is given.
        pruned: what `prune_model` wrote.
        dense_weights: checkpoint of the model that it was pruned from.

    Raises:
        CheckpointError: `pruned` does not say which channels it kept, or kept them of another model.
    """
    import torch

    from altermoma.checkpoints.io import load_checkpoint
    from altermoma.pruning.groups import fusion_groups
    from altermoma.pruning.surgery import kept_entries
    from altermoma.pruning.two_four_permute import check_orders, permuted_entries
    from altermoma.training.distill import Teacher

    dense = place.dense_model() if dense_weights is None else place.model(dense_weights)
    student, metadata = place.model(pruned), load_checkpoint(pruned)[1]
    if "kept" not in metadata:
        raise CheckpointError(
            f"{pruned} does not say which channels of a teacher it has",
            expected="weights as `altermoma prune` wrote them",
            remedy="train the pruned file itself with --teacher, or leave --teacher out",
        )
    groups, fewer = fusion_groups(dense), fusion_groups(student)
    keep = {name: torch.tensor(channels) for name, channels in metadata["kept"].items()}
    orders = {name: torch.tensor(order) for name, order in metadata.get(SPARSITY, {}).get("orders", {}).items()}
    check_orders(fewer, orders)

    def shared(layer: str) -> torch.Tensor:
        """The dense channels that the student has at the layer's input, in the student's order."""
        kept = kept_entries(groups, keep, layer, 1, dense.get_parameter(layer).shape[1])
        return kept[permuted_entries(fewer, orders, layer, 1, len(kept))].to(place.device)

    return Teacher(
        model=dense,
        fuser_channels=shared("fusion_layer.0.weight"),
        head_channels=shared("bbox_head.shared_conv.weight"),
    )


def finetune_model(place: Workplace, start: Path, folder: Path) -> dict[str, Any]:
    """Trains the pruned model; 2:4 weights stay so. A kill costs at most `checkpoint_every` steps."""
    from altermoma.checkpoints.io import describe, save_checkpoint
    from altermoma.training.loop import detection_objective, train

    recipe = place.recipe
    teacher = teacher_of(place, start) if recipe.finetune.distill_weight > 0 else None
    objective = detection_objective(recipe.finetune, teacher)
    masks, sparsity = masks_of(start)
    result = train(
        place.model(start),
        place.train,
        recipe.finetune,
        folder=folder,
        objective=objective,
        masks=masks,
        compute=recipe.compute,
    )
    metadata = describe(result.model, recipe.model) | {"steps": result.steps} | sparsity
    save_checkpoint(folder / PRUNED_FILE, result.model.state_dict(), metadata)
    return {"steps": result.steps}
