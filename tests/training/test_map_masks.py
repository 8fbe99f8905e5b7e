"""Masks of the map head: read, trained with, scored with and evaluated; and what becomes of a map head without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from altermoma.checkpoints.io import describe, save_checkpoint
from altermoma.data.map_masks import MapMasks
from altermoma.errors import DataError, RecipeError
from altermoma.evaluation.predict import run_torch
from altermoma.models.config import MapConfig, ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.ops.decode import decode_map
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.one_round import score
from altermoma.recipe import DataRecipe, PruneRecipe, Recipe, TrainRecipe
from altermoma.training.loop import detection_objective
from altermoma.training.losses import task_loss
from altermoma.workflow.oneshot import run as run_all
from altermoma.workflow.place import Workplace
from altermoma.workflow.scoring import scoring_batches
from altermoma.workflow.single import evaluate_checkpoint

CONFIG = ModelConfig(map=MapConfig(classes=6, low=-24.0, cell=1.0, cells=48, hidden=16))
SCORING = PruneRecipe(score_batches=1, reactivation_batches=1, reri_batches=1, batch_size=1, reactivation_lr=1e-6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, path = FusionModel(CONFIG), tmp_path_factory.mktemp("map") / "random.safetensors"
    save_checkpoint(path, model.state_dict(), describe(model, "bevfusion-tiny"))
    return path


@pytest.fixture
def place(tiny_nuscenes: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The data set with a folder of random masks."""
    monkeypatch.setenv("ALTERMOMA_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(
        checkpoint=str(checkpoint),
        data=DataRecipe(root=str(tiny_nuscenes), map_masks=str(tmp_path)),
        prune=SCORING,
        finetune=TrainRecipe(augment=False, depth_weight=0.0),
    )
    rng, reader = np.random.default_rng(0), Workplace(recipe).reader
    for token in {*reader.tokens("mini_train"), *reader.tokens("mini_val")}:
        np.save(tmp_path / f"{token}.npy", rng.random((6, 48, 48)) < 0.3)
    return Workplace(recipe)


def without_masks(place: Workplace, **changes: object) -> Recipe:
    data = dataclasses.replace(place.recipe.data, map_masks="")
    return dataclasses.replace(place.recipe, data=data, **changes)


def test_the_loss_of_both_tasks_trains_and_scores_the_map_head(place: Workplace) -> None:
    model = place.dense_model()
    sample = place.train[0]
    truth = torch.from_numpy(np.load(Path(place.recipe.data.map_masks) / f"{sample.token}.npy")).float()
    logits = torch.from_numpy(run_torch(model, place.geometry)(sample.inputs)["map"])[0]
    right = torch.where(truth > 0, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-right.log() * (1 - right) ** 2).sum() / (48 * 48)
    terms = detection_objective(place.recipe.finetune)(model, [sample])
    assert terms.map is not None
    parts = terms.parts()
    assert parts["map"] == pytest.approx(float(expected), rel=1e-4)
    assert parts["total"] == pytest.approx(sum(parts[n] for n in ("heatmap", "classes", "boxes", "map")), rel=1e-5)
    terms.total.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.map_head.parameters())
    groups = [group for group in fusion_groups(model) if group.partition == "fusion"]
    found = score(model, groups, scoring_batches(place), SCORING, task_loss)
    classifier = [name for name in found if name.startswith("map_head")]
    assert classifier
    assert all(found[name].abs().sum() > 0 for name in classifier)


def test_masks_drawn_by_the_model_itself_are_found_again(place: Workplace, tmp_path: Path) -> None:
    run, reader = run_torch(place.dense_model(), place.geometry), place.reader
    bare = Workplace(without_masks(place))
    for sample in bare.val:
        map_bcxy = decode_map(run(sample.inputs))
        assert map_bcxy is not None
        np.save(tmp_path / f"{sample.token}.npy", (map_bcxy[0] >= 0.5).astype(np.uint8))
    metrics = evaluate_checkpoint(place.recipe)
    classes = [index for index in range(6) if any(np.load(tmp_path / f"{t}.npy")[index].any() for t in bare.val.tokens)]
    assert classes
    assert [list(metrics["map_iou"].values())[index] for index in classes] == [1.0] * len(classes)
    assert metrics["mIoU"] == pytest.approx(np.mean(list(metrics["map_iou"].values())))
    assert "mIoU" not in evaluate_checkpoint(bare.recipe)
    assert len(reader.tokens("mini_val")) == metrics["frames"]


def test_a_map_head_without_masks_is_neither_trained_nor_scored(place: Workplace, tmp_path: Path) -> None:
    bare = Workplace(without_masks(place))
    batch, truths = scoring_batches(bare)[0]
    with pytest.raises(DataError, match="no map masks"):
        task_loss(bare.dense_model(), batch, truths)
    with pytest.raises(DataError, match="no map masks"):
        run_all(bare.recipe, tmp_path / "run")


def test_frames_do_not_move_away_from_their_masks(place: Workplace) -> None:
    moved = Workplace(dataclasses.replace(place.recipe, finetune=TrainRecipe(augment=True)))
    with pytest.raises(DataError, match=r"finetune\.augment = false"):
        moved.train.batch(0, batch_size=1, seed=0)
    assert moved.train[0].inputs["map_truth"].shape == (1, 6, 48, 48)


def test_masks_for_a_model_without_a_map_head(place: Workplace) -> None:
    with pytest.raises(RecipeError, match="no map head"):
        assert Workplace(dataclasses.replace(place.recipe, checkpoint="")).val


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "one of 1 that are missing"),
        (lambda path: np.save(path, np.zeros((6, 48, 47), bool)), r"\[6, 48, 47\]"),
        (lambda path: np.save(path, np.full((6, 48, 48), 0.5)), "other values"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "cannot be read"),
    ],
)
def test_broken_masks(place: Workplace, spoil: Callable[[Path], None], message: str) -> None:
    path = Path(place.recipe.data.map_masks) / f"{place.reader.tokens('mini_val')[0]}.npy"
    spoil(path)
    with pytest.raises(DataError, match=message):
        place.val[0]


def test_no_folder_of_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no map masks at"):
        MapMasks(tmp_path / "none", (6, 4, 4))
