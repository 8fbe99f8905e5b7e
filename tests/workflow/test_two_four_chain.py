"""2:4 through the whole chain with random weights: pruned, fine-tuned, exported, trained on; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from altermoma.checkpoints.io import load_checkpoint, model_from_checkpoint, save_checkpoint
from altermoma.deploy.bundle import Bundle, copy_bundle
from altermoma.deploy.tensorrt_config import options_of
from altermoma.errors import ExportError, PruningError, RecipeError
from altermoma.export.sparsity import holds_two_four, product_weights
from altermoma.models.presets import build
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.two_four import claimed_masks
from altermoma.recipe import BenchRecipe, DataRecipe, EngineRecipe, ExportRecipe, PruneRecipe, Recipe, TrainRecipe
from altermoma.report.html import render
from altermoma.report.summary import Summary
from altermoma.workflow.bundles import build_bundle
from altermoma.workflow.compress import PRUNED_FILE, teacher_of
from altermoma.workflow.oneshot import run
from altermoma.workflow.place import Workplace
from altermoma.workflow.scoring import with_open_keys_filled
from altermoma.workflow.single import export_to_bundle, prune_to_file, train_model
from altermoma.workflow.sparsity import check_sparsity

PRESET = "bevfusion-tiny"
SPARSE = EngineRecipe(sparsity="2:4", build="never")


@pytest.fixture(scope="module")
def recipe(tiny_nuscenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("sparse")
    torch.manual_seed(0)
    save_checkpoint(folder / "random.safetensors", build(PRESET).state_dict(), {"preset": PRESET})
    return Recipe(
        name="sparse",
        checkpoint=str(folder / "random.safetensors"),
        data=DataRecipe(root=str(tiny_nuscenes)),
        prune=PruneRecipe(score_batches=1, reactivation_batches=1, reri_batches=1, batch_size=1),
        finetune=TrainRecipe(steps=2, batch_size=1, ema_decay=0.5),
        # Random weights give near ties among the proposals, so that tolerances on the head say nothing here.
        export=ExportRecipe(fp32_tolerance=1.0, fp32_frame_tolerance=1.0, fp16_tolerance=1.0, fp16_frame_tolerance=1.0),
        engine=SPARSE,
        bench=BenchRecipe(frames=1, rounds=1, warmup=0),
    )


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sparse"
    run(recipe, out)
    return out


def holds(file: Path) -> int:
    """How many weights of a checkpoint are 2:4, all of those that it claims."""
    state, metadata = load_checkpoint(file)
    masks = claimed_masks(state, metadata["sparsity"], file.name)
    assert all(bool((state[name][~mask] == 0).all()) for name, mask in masks.items())
    return len(masks)


@pytest.mark.slow
def test_every_step_keeps_the_pattern(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    pruned, tuned = (finished / "steps" / step / PRUNED_FILE for step in ("prune", "finetune"))
    assert holds(tuned) == holds(pruned) > 40
    before, after = load_checkpoint(pruned)[0], load_checkpoint(tuned)[0]
    assert not torch.equal(before["fusion_layer.0.weight"], after["fusion_layer.0.weight"])
    again = dataclasses.replace(recipe, checkpoint=str(tuned), finetune=TrainRecipe(steps=1, batch_size=1))
    further = train_model(again, tmp_path / "further")
    assert holds(further) == holds(pruned)
    assert not torch.equal(load_checkpoint(further)[0]["fusion_layer.0.weight"], after["fusion_layer.0.weight"])


@pytest.mark.slow
def test_bundle_summary_and_report_say_so(finished: Path) -> None:
    bundle, summary = Bundle.open(finished / "bundle"), Summary.read(finished / "summary.json")
    record = bundle.manifest.sparsity
    assert (record["asked"], record["rule"]) == ("2:4", "aligned")
    assert record["eligible_flops"] == record["two_four_flops"] > 0.5
    eligible = {(layer["stage"], layer["node"]) for layer in record["layers"] if not layer["obstacle"]}
    for precision in ("fp32", "fp16"):
        for name, stage in bundle.stages(precision).items():
            weights = dict(product_weights(onnx.load_model_from_string(bundle.graph(stage))))
            assert all(holds_two_four(weights[node]) for where, node in eligible if where == name)
    assert summary.sparsity is not None
    assert summary.sparsity.two_four_flops == record["two_four_flops"]
    assert summary.sparsity.kept_before is not None
    assert summary.sparsity.kept_after is not None
    assert 0.7 < summary.sparsity.kept_before < summary.sparsity.kept_after < 0.9
    assert any("ONNX Runtime computes them like dense ones" in note for note in summary.notes)
    page = (finished / "report.html").read_text()
    assert "could be 2:4, is dense" not in page
    assert "holds 2:4" in page
    assert "transposed convolutions have no sparse kernels" in page
    older = json.loads((finished / "summary.json").read_text())
    del older["sparsity"]
    (finished / "older.json").write_text(json.dumps(older))
    assert "2:4 sparsity" not in render(Summary.read(finished / "older.json"), None)


@pytest.mark.slow
def test_the_teacher_shows_the_same_channels(finished: Path, recipe: Recipe) -> None:
    """The student has some of the teacher's channels in another order: biases, which no mask touches, are the same."""
    pruned = finished / "steps" / "prune" / PRUNED_FILE
    place = Workplace(recipe)
    teacher = teacher_of(place, pruned)
    student, dense = model_from_checkpoint(pruned), place.dense_model()
    assert len(teacher.fuser_channels) == student.get_parameter("fusion_layer.0.weight").shape[1]
    assert teacher.fuser_channels.tolist() != sorted(teacher.fuser_channels.tolist())
    bias, bins = "view_transform.depthnet.6.bias", dense.view_transform.depth_bins
    lifted = student.get_parameter(bias)[bins:]
    wanted = dense.get_parameter(bias)[bins:][teacher.fuser_channels[: len(lifted)]]
    torch.testing.assert_close(lifted, wanted, rtol=0, atol=0)


@pytest.mark.slow
def test_a_dense_checkpoint_is_not_exported_as_sparse(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"fp32: img_backbone/layer1/0/conv1/Conv has more than two weights"):
        export_to_bundle(recipe, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_pruning_alone(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense widths, by another rule, in the channels' own order."""
    monkeypatch.setenv("ALTERMOMA_CACHE", str(tmp_path / "cache"))
    prune = dataclasses.replace(recipe.prune, amount=0.0, two_four_rule="pattern", two_four_permute=False)
    file = prune_to_file(dataclasses.replace(recipe, prune=prune), tmp_path / "pruned.safetensors")
    record = load_checkpoint(file)[1]["sparsity"]
    assert (record["rule"], record["orders"], record["kept_before"]) == ("pattern", {}, record["kept_after"])
    assert "view_transform.dtransform.3.weight" in record["weights"]
    assert holds(file) > 50
    wide = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, amount=0.0, two_four_rule="wide"))
    file = prune_to_file(wide, tmp_path / "wide.safetensors")
    assert holds(file) < 40


@pytest.mark.slow
def test_a_dense_bundle_has_no_sparse_engines(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    manifest = copy_bundle(finished / "bundle", tmp_path / "dense", sparsity={}).manifest
    with pytest.raises(RecipeError, match=r"--sparsity 2:4 for .*dense, whose weights are dense"):
        build_bundle(tmp_path / "dense", recipe.builder, sparsity="2:4")
    # The fp32 engine of a 2:4 bundle is the yardstick: fp32 has no sparse kernels.
    assert [options_of(manifest, precision).sparsity for precision in ("fp32", "fp16")] == ["dense", "2:4"]


def test_targets_and_precisions_without_sparse_kernels(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "old-gpu"
    folder.mkdir()
    text = Path("deploy/generic/target.toml").read_text().replace("sparse = true", "sparse = false")
    (folder / "target.toml").write_text(text)
    engine = dataclasses.replace(SPARSE, target=str(folder / "target.toml"))
    for start in (check_sparsity, lambda r: run(r, tmp_path / "out"), lambda r: prune_to_file(r, tmp_path / "f")):
        with pytest.raises(RecipeError, match="2:4 sparsity for target old-gpu, which has no sparse kernels"):
            start(dataclasses.replace(recipe, engine=engine))
    with pytest.raises(RecipeError, match="2:4 sparsity in fp32"):
        check_sparsity(dataclasses.replace(recipe, engine=dataclasses.replace(SPARSE, precision="fp32")))
    check_sparsity(recipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "sparsity", "steps"),
    [("orin-jp62", "2:4", (16, 16)), ("orin-jp62", "dense", (8, 8)), ("generic", "2:4", (16, 16))],
)
def test_widths_keep_layers_eligible(recipe: Recipe, target: str, sparsity: str, steps: tuple[int, int]) -> None:
    engine = EngineRecipe(target=target, sparsity=sparsity)  # type: ignore[arg-type]
    found = with_open_keys_filled(dataclasses.replace(recipe, engine=engine)).prune
    assert (found.channel_step, found.lidar_channel_step) == steps
    given = dataclasses.replace(recipe.prune, channel_step=8, lidar_channel_step=4)
    kept = with_open_keys_filled(dataclasses.replace(recipe, engine=engine, prune=given)).prune
    assert (kept.channel_step, kept.lidar_channel_step) == (8, 4)


def test_a_damaged_order_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    model = build(PRESET)
    kept = {group.name: list(range(group.width)) for group in fusion_groups(model)}
    record = {"pattern": "2:4", "rule": "aligned", "weights": {}, "orders": {"fusion_layer.0": [0, 0]}}
    save_checkpoint(tmp_path / PRUNED_FILE, model.state_dict(), {"preset": PRESET, "kept": kept, "sparsity": record})
    with pytest.raises(PruningError, match=r"the order of fusion_layer\.0 is \[0, 0\]"):
        teacher_of(Workplace(recipe), tmp_path / PRUNED_FILE)
    assert np.array_equal(kept["fusion_layer.0"][:2], [0, 1])
