"""The steps of the one-shot as commands of their own, without a run folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altermoma.deploy.pipeline import Backend
from altermoma.recipe import Recipe
from altermoma.storage import write_bytes
from altermoma.workflow import accuracy
from altermoma.workflow.compress import PRUNED_FILE, prune_model, with_target_widths
from altermoma.workflow.place import Workplace
from altermoma.workflow.plan import precisions_of

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel

MODEL_FILE = "model.safetensors"


def train_model(recipe: Recipe, folder: Path, *, from_scratch: bool = False) -> Path:
    """Trains with the recipe's [finetune]; returns the weights written to the folder."""
    from altermoma.checkpoints.io import describe, save_checkpoint
    from altermoma.training.loop import train

    place = Workplace(recipe)
    model = _seeded(place) if from_scratch else place.dense_model()
    result = train(model, place.train, recipe.finetune, folder=folder)
    metadata = describe(result.model, recipe.model) | {"recipe": recipe.to_dict()}
    save_checkpoint(folder / MODEL_FILE, result.model.state_dict(), metadata)
    return folder / MODEL_FILE


def _seeded(place: Workplace) -> FusionModel:
    import torch

    from altermoma.models.fusion import FusionModel

    torch.manual_seed(place.recipe.finetune.seed)
    return FusionModel(place.config)


def prune_to_file(recipe: Recipe, file: Path) -> Path:
    """Scores and prunes; returns the file of pruned weights."""
    with tempfile.TemporaryDirectory(prefix="altermoma-prune-") as folder:
        prune_model(Workplace(with_target_widths(recipe)), Path(folder))
        write_bytes(file, (Path(folder) / PRUNED_FILE).read_bytes())
    return file


def export_to_bundle(recipe: Recipe, folder: Path) -> Path:
    """Exports the recipe's checkpoint; returns the bundle folder."""
    from altermoma.workflow.graphs import export_bundle

    place = Workplace(recipe)
    export_bundle(place, place.dense_model(), precisions_of(recipe), folder, {})
    return folder


def evaluate_checkpoint(recipe: Recipe) -> dict[str, Any]:
    """Metrics of the recipe's checkpoint in torch."""
    place = Workplace(recipe)
    with tempfile.TemporaryDirectory(prefix="altermoma-eval-") as folder:
        return accuracy.evaluate_torch(place, place.dense_model(), Path(folder))


def evaluate_bundle(recipe: Recipe, bundle: Path, backend: Backend, precision: str) -> dict[str, Any]:
    """Metrics of a bundle's graphs or engines."""
    with tempfile.TemporaryDirectory(prefix="altermoma-eval-") as folder:
        return accuracy.evaluate_engine(Workplace(recipe), bundle, backend, precision, Path(folder) / "detections.npz")
