"""Single weights through prune and train with random weights, held against torch's own pruning, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils import prune as torch_prune

from altermoma.checkpoints.adopt import open_checkpoint, save_adopted
from altermoma.checkpoints.io import load_checkpoint, model_from_checkpoint, save_checkpoint
from altermoma.errors import CheckpointError, PruningError, RecipeError
from altermoma.models.presets import build
from altermoma.recipe import BenchRecipe, DataRecipe, EngineRecipe, PruneRecipe, Recipe, TrainRecipe
from altermoma.workflow.oneshot import run
from altermoma.workflow.single import prune_to_file, train_model
from altermoma.workflow.sparsity import masks_of

PRESET = "bevfusion-tiny"


@pytest.fixture(scope="module")
def recipe(tiny_nuscenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("single")
    torch.manual_seed(0)
    save_checkpoint(folder / "random.safetensors", build(PRESET).state_dict(), {"preset": PRESET})
    return Recipe(
        name="single",
        checkpoint=str(folder / "random.safetensors"),
        data=DataRecipe(root=str(tiny_nuscenes)),
        prune=PruneRecipe(budget="weights", amount=0.8, method="magnitude"),
        finetune=TrainRecipe(steps=2, batch_size=1),
        engine=EngineRecipe(build="never"),
        bench=BenchRecipe(frames=1, rounds=1, warmup=0),
    )


@pytest.fixture(scope="module")
def pruned(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune_to_file(recipe, tmp_path_factory.mktemp("single") / "pruned.safetensors")


def scored_weights(state: dict[str, Tensor], file: Path) -> list[str]:
    """Weight tensors of more than one dimension that pruning touched; all others are as in the dense file."""
    kept = load_checkpoint(file)[1]["sparsity"]["kept"]
    dense, cut = state, load_file(file)
    assert all(torch.equal(dense[name], cut[name]) for name in dense if name not in kept)
    return list(kept)


def test_magnitude_removes_what_torch_removes(recipe: Recipe, pruned: Path) -> None:
    dense, cut = load_file(recipe.checkpoint), load_file(pruned)
    names = scored_weights(dense, pruned)
    holders = []
    for name in names:
        holder = torch.nn.Module()
        holder.weight = torch.nn.Parameter(dense[name].clone())
        holders.append((holder, "weight"))
    torch_prune.global_unstructured(holders, pruning_method=torch_prune.L1Unstructured, amount=0.8)
    for name, (holder, _) in zip(names, holders, strict=True):
        assert torch.equal(cut[name] != 0, holder.weight_mask.bool()), name
    record = load_checkpoint(pruned)[1]["pruning"]
    assert record["got"] == pytest.approx(0.8, abs=1e-6)
    assert set(record["by_partition"]) == {"camera", "lidar", "fusion"}


def test_training_keeps_the_zeros_and_takes_a_teacher(recipe: Recipe, pruned: Path, tmp_path: Path) -> None:
    student = dataclasses.replace(recipe, checkpoint=str(pruned))
    tuned = train_model(student, tmp_path / "tuned", teacher=Path(recipe.checkpoint))
    before, after = load_file(pruned), load_file(tuned)
    moved = 0
    for name in scored_weights(load_file(recipe.checkpoint), pruned):
        assert not after[name][before[name] == 0].any(), name
        moved += int((after[name] != before[name]).sum())
    assert moved > 1000
    again, record = masks_of(tuned)
    assert record == masks_of(pruned)[1], "a second training keeps them too"
    assert all(torch.equal(mask, before[name] != 0) for name, mask in again.items())
    assert model_from_checkpoint(tuned).state_dict().keys() == before.keys()


def test_each_partition_may_lose_the_same_share(recipe: Recipe, tmp_path: Path) -> None:
    asked = dataclasses.replace(recipe.prune, threshold="partition", amount=0.5)
    record = load_checkpoint(prune_to_file(dataclasses.replace(recipe, prune=asked), tmp_path / "apart.safetensors"))[
        1
    ]["pruning"]
    assert record["by_partition"] == pytest.approx({"camera": 0.5, "lidar": 0.5, "fusion": 0.5}, abs=1e-4)


def test_nothing_to_remove_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    asked = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, amount=0.0))
    with pytest.raises(PruningError, match="amount"):
        prune_to_file(asked, tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_what_no_engine_gains_from_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="altermoma-export"):
        run(recipe, tmp_path / "run")
    both = dataclasses.replace(recipe, engine=EngineRecipe(sparsity="2:4", build="never"))
    with pytest.raises(RecipeError, match="2:4"):
        prune_to_file(both, tmp_path / "both.safetensors")
    assert not list(tmp_path.iterdir())


def test_zeros_are_not_forgotten_by_pruning_again(recipe: Recipe, pruned: Path, tmp_path: Path) -> None:
    again = dataclasses.replace(recipe, checkpoint=str(pruned))
    channels = dataclasses.replace(again, prune=PruneRecipe(amount=0.3, method="magnitude"))
    for asked in (again, channels):
        with pytest.raises(PruningError, match="pruned before"):
            prune_to_file(asked, tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()


def test_zeros_are_not_forgotten_by_converting(pruned: Path, tmp_path: Path) -> None:
    save_adopted(tmp_path / "same.safetensors", open_checkpoint(pruned), source=pruned.name)
    assert masks_of(tmp_path / "same.safetensors")[1] == masks_of(pruned)[1]


def test_a_partition_is_not_emptied(recipe: Recipe, tmp_path: Path) -> None:
    model, faint = build(PRESET), tmp_path / "faint.safetensors"
    for name, weight in model.named_parameters():
        weight.data.mul_(1e-6 if model.partition_of(name) == "lidar" else 1.0)
    save_checkpoint(faint, model.state_dict(), {"preset": PRESET})
    with pytest.raises(PruningError, match="every weight of lidar"):
        prune_to_file(dataclasses.replace(recipe, checkpoint=str(faint)), tmp_path / "empty.safetensors")
    channels = dataclasses.replace(recipe.prune, budget="flops", amount=0.3, threshold="partition")
    with pytest.raises(PruningError, match="threshold"):
        prune_to_file(dataclasses.replace(recipe, prune=channels), tmp_path / "empty.safetensors")


def test_weights_that_came_back_are_an_error(pruned: Path, tmp_path: Path) -> None:
    state, metadata = load_checkpoint(pruned)
    name = next(iter(metadata["sparsity"]["kept"]))
    filled = dict(state) | {name: torch.ones_like(state[name])}
    save_checkpoint(tmp_path / "filled.safetensors", filled, metadata)
    with pytest.raises(CheckpointError, match=name):
        masks_of(tmp_path / "filled.safetensors")
    save_checkpoint(tmp_path / "odd.safetensors", state, metadata | {"sparsity": {"pattern": "single weights"}})
    with pytest.raises(CheckpointError, match="how many"):
        masks_of(tmp_path / "odd.safetensors")
