"""A budget in another machine's milliseconds: written, measured, pruned by; what does not fit together is an error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from altermoma.calib.settings import load_settings
from altermoma.checkpoints.io import load_checkpoint, model_from_checkpoint
from altermoma.cli.app import app
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.stage_tables import MeasuredTables, Served, StageTimes, WidthSet, identity_of
from altermoma.errors import AltermomaError, PruningError, RecipeError, StorageError
from altermoma.experiments.cells import TIMED, Cell
from altermoma.experiments.recipe import ExperimentRecipe
from altermoma.experiments.workbench import Workbench
from altermoma.pruning.flops import count_flops
from altermoma.pruning.groups import fusion_groups
from altermoma.recipe import DataRecipe, EngineRecipe, PruneRecipe, Recipe, TrainRecipe
from altermoma.workflow import oneshot, width_bundles
from altermoma.workflow.calibrate import frames_of
from altermoma.workflow.compress import prune_model, reference_batch
from altermoma.workflow.given_tables import check_tables, given_tables, latency_line, tables_inputs
from altermoma.workflow.place import Workplace
from altermoma.workflow.plan import prune_inputs
from altermoma.workflow.scoring import with_open_keys_filled
from altermoma.workflow.single import prune_to_file
from altermoma.workflow.width_bundles import _with_few_frames, write_widths

STAGES = ("camera", "view", "lidar", "fusion", "head")
FP32 = EngineRecipe(precision="fp32")


def asked(root: Path, tables: Path, **prune: Any) -> Recipe:
    given = {"method": "magnitude", "budget": "latency", "amount": 0.15, "min_channels": 4, **prune}
    return Recipe(data=DataRecipe(root=str(root)), prune=PruneRecipe(latency_tables=str(tables), **given), engine=FP32)


@pytest.fixture(scope="session")
def flops(tiny_nuscenes: Path) -> dict[str, float]:
    """Of the shipped model's stages on the frame that pruning counts on."""
    place = Workplace(Recipe(data=DataRecipe(root=str(tiny_nuscenes))))
    return count_flops(place.model_on_host(place.checkpoint), reference_batch(place)).by_stage()


@pytest.fixture
def tables(flops: dict[str, float], tmp_path: Path) -> Path:
    """A machine on which only the fusion stage becomes faster with fewer channels."""
    flat, steep = StageTimes(shares=(1.0, 0.5, 0.2), ms=(4.0, 4.0, 4.0)), StageTimes(shares=(1.0, 0.1), ms=(10.0, 1.0))
    measured = MeasuredTables(
        model="bevfusion-tiny",
        served=Served(precision="fp32", sparsity="dense", target="generic"),
        flops=flops,
        device="Test GPU",
        runtime="TensorRT 10.3.0",
        stages={stage: steep if stage == "fusion" else flat for stage in STAGES},
    )
    measured.write(tmp_path / "latency.json")
    return tmp_path / "latency.json"


def by_hand(times: dict[str, list[float]], share: float) -> float:
    """Milliseconds at a share of the FLOPs, from the numbers in the file."""
    shares, ms = np.array(times["shares"]), np.array(times["ms"])
    points = sorted({float(at): float(np.median(ms[shares == at])) for at in shares}.items())
    at, level = np.array([a for a, _ in points]), np.maximum.accumulate([m for _, m in points])
    return float(np.interp(share, at, level))


@pytest.mark.slow
def test_written_measured_and_pruned_by(
    tiny_nuscenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(width_bundles, "KEPT", (1.0, 0.5))
    monkeypatch.setenv("ALTERMOMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(tiny_nuscenes)]
    app(["tables", "write", *data, "--engine", "fp32", "--out", "widths"], standalone_mode=False)
    widths = WidthSet.read(tmp_path / "widths")
    steps = {"camera": 16, "lidar": 8, "fusion": 16}
    for width in widths.widths:
        bundle = Bundle.open(tmp_path / "widths" / width.name)
        assert identity_of(bundle.manifest) == width.identity
        kept = bundle.manifest.widths["kept"]
        for group in fusion_groups(Workplace(Recipe()).dense_model()):
            step = steps[group.partition]
            wanted = group.width if width.name == "100" else group.width / 2
            allowed = [w for w in range(8, group.width) if w % step == 0] + [group.width]
            assert kept[group.name] in allowed
            assert abs(kept[group.name] - wanted) == min(abs(w - wanted) for w in allowed)
    app(["tables", "measure", "widths", "--backend", "onnxruntime", "--rounds", "2"], standalone_mode=False)
    lines = ['[prune]\nbudget = "latency"', 'latency_tables = "widths/latency.json"', "amount = 0.15\nmin_channels = 4"]
    (tmp_path / "recipe.toml").write_text("\n".join([*lines, '[engine]\nprecision = "fp32"']))
    words = ["prune", "--recipe", "recipe.toml", *data, "--method", "magnitude", "--out", "pruned.safetensors"]
    app(words, standalone_mode=False)
    record = load_checkpoint(tmp_path / "pruned.safetensors")[1]["pruning"]
    measured = json.loads((tmp_path / "widths" / "latency.json").read_text())["stages"]
    place = Workplace(Recipe(data=DataRecipe(root=str(tiny_nuscenes))))
    left = count_flops(model_from_checkpoint(tmp_path / "pruned.safetensors"), reference_batch(place)).by_stage()
    after = {s: by_hand(measured[s], left[s] / widths.flops[s]) for s in STAGES}
    before = {s: by_hand(measured[s], 1.0) for s in STAGES}
    assert record["latency"]["ms_after"] == pytest.approx(after)
    assert record["got"] == pytest.approx(1 - sum(after.values()) / sum(before.values()), abs=1e-9)
    assert record["got"] == pytest.approx(0.15, abs=0.05)
    assert latency_line(record["latency"]) in " ".join(capfd.readouterr().err.split())


def test_channels_go_where_the_other_machine_s_time_is(tiny_nuscenes: Path, tables: Path, tmp_path: Path) -> None:
    recipe = asked(tiny_nuscenes, tables, selection="greedy")
    record = prune_model(Workplace(with_open_keys_filled(recipe)), tmp_path)
    before, after = (record[key]["by_stage"] for key in ("flops_before", "flops_after"))
    share = after["fusion"] / before["fusion"]
    # 26 ms in all, of which 15 % go, and a channel of the fusion stage takes 10 of 9 tenths of its FLOPs.
    assert 16.0 + 10.0 * share == pytest.approx(26.0 * (1 - record["got"]))
    assert record["got"] == pytest.approx(0.15, abs=0.02)
    assert after["lidar"] > 0.9 * before["lidar"]
    assert record["latency"]["device"] == "Test GPU"
    assert "measured on Test GPU, TensorRT 10.3.0, fp32 for target generic" in latency_line(record["latency"])


def test_an_experiment_counts_them_too(tiny_nuscenes: Path, tables: Path, tmp_path: Path) -> None:
    prune = asked(tiny_nuscenes, tables, channel_step=16, lidar_channel_step=8).prune
    recipe = ExperimentRecipe(
        title="T", granularity="channels", amounts=(0.15,), data=DataRecipe(root=str(tiny_nuscenes)), prune=prune
    )
    bench = Workbench(recipe, tmp_path / "cells")
    groups = fusion_groups(bench.dense)
    pruned = bench.cut(bench.place.recipe.prune, {group.name: torch.rand(group.width) for group in groups})
    assert pruned.removed["latency"]["device"] == "Test GPU"
    assert pruned.removed["latency"]["ms_before"] == {s: 10.0 if s == "fusion" else 4.0 for s in STAGES}
    assert pruned.removed["got"] == pytest.approx(0.15, abs=0.05)
    assert not (tmp_path / "cells").exists(), "nothing was measured"
    changed(tables, model="bevfusion-tiny-swin")
    with pytest.raises(RecipeError, match="is of model bevfusion-tiny-swin"):
        bench.cut(bench.place.recipe.prune, {})


def test_equal_shares_count_as_one(tiny_nuscenes: Path, tables: Path) -> None:
    """Where no width changes a stage, or two widths come to the same."""
    record = json.loads(tables.read_text())
    record["stages"]["view"] = {"shares": [1.0, 1.0, 1.0], "ms": [3.0, 9.0, 4.0]}
    record["stages"]["head"] = {"shares": [1.0, 0.5, 0.5], "ms": [6.0, 5.0, 3.0]}
    tables.write_text(json.dumps(record))
    recipe = asked(tiny_nuscenes, tables)
    place = Workplace(recipe)
    found = given_tables(recipe, place.model_on_host(place.checkpoint), reference_batch(place))
    assert [found["view"].at(share) for share in (1.0, 0.3)] == [4.0, 4.0]
    assert (found["head"].shares, found["head"].ms) == ((0.5, 1.0), (4.0, 6.0))


def changed(tables: Path, **entries: Any) -> None:
    tables.write_text(json.dumps(json.loads(tables.read_text()) | entries))


HEAD = {"shares": [1.0, 0.5], "ms": [2.0, 1.0]}
SERVED = {"precision": "fp32", "sparsity": "dense", "target": "generic"}


@pytest.mark.parametrize(
    ("entries", "kind", "said"),
    [
        ({"model": "bevfusion-mit-r101-second"}, RecipeError, "is of model bevfusion-mit-r101-second"),
        ({"served": SERVED | {"precision": "fp16"}}, RecipeError, r"is for fp16 .* asks for fp32 for target generic"),
        ({"served": SERVED | {"sparsity": "2:4"}}, RecipeError, "is for fp32 with 2:4 weights"),
        ({"served": SERVED | {"target": "orin-jp62"}}, RecipeError, "for target orin-jp62, while"),
        ({"schema": 2}, StorageError, "has schema 2"),
        ({"stages": {"head": HEAD | {"ms": [2.0]}}}, StorageError, "as many times as shares"),
        ({"stages": {"head": HEAD | {"ms": [2.0, 0.0]}}}, StorageError, "above 0"),
        ({"stages": {"head": HEAD | {"ms": [2.0, float("nan")]}}}, StorageError, "finite"),
        ({"stages": {"head": HEAD | {"shares": [float("inf"), 1.0]}}}, StorageError, "finite"),
        ({"stages": {"head": {"shares": [0.9, 0.5], "ms": [2.0, 1.0]}}}, StorageError, "lacks the dense model"),
        ({"stages": {"head": HEAD | {"watts": [1.0, 2.0]}}}, StorageError, "incomplete or malformed"),
        ({"stages": [1]}, StorageError, "incomplete or malformed"),
        ({"served": {}}, StorageError, "incomplete or malformed"),
    ],
)
def test_tables_that_do_not_fit_end_a_run_before_its_work(
    tiny_nuscenes: Path, tables: Path, entries: dict[str, Any], kind: type[AltermomaError], said: str
) -> None:
    recipe = asked(tiny_nuscenes, tables)
    check_tables(recipe)
    changed(tables, **entries)
    for work in (
        lambda: prune_to_file(recipe, tables.parent / "p"),
        lambda: oneshot.run(recipe, tables.parent / "run"),
    ):
        with pytest.raises(kind, match=said) as caught:
            work()
        assert caught.value.remedy
    assert [path.name for path in tables.parent.iterdir()] == ["latency.json"]


def test_no_file_and_nothing_that_counts_it(tiny_nuscenes: Path, tables: Path) -> None:
    with pytest.raises(RecipeError, match="with a budget in flops"):
        check_tables(asked(tiny_nuscenes, tables, budget="flops"))
    tables.write_text(tables.read_text()[:-20])
    with pytest.raises(StorageError, match="is not valid JSON"):
        check_tables(asked(tiny_nuscenes, tables))
    tables.unlink()
    with pytest.raises(StorageError, match="no latency tables at"):
        check_tables(asked(tiny_nuscenes, tables))


def test_tables_of_other_weights_or_frames(tiny_nuscenes: Path, tables: Path, flops: dict[str, float]) -> None:
    recipe = asked(tiny_nuscenes, tables)
    place = Workplace(recipe)
    model, reference = place.model_on_host(place.checkpoint), reference_batch(place)
    changed(tables, flops=flops | {"lidar": 0.9 * flops["lidar"]})
    with pytest.raises(PruningError, match=r"stage lidar has .* GFLOPs, and had"):
        given_tables(recipe, model, reference)
    record = json.loads(tables.read_text())
    changed(tables, flops=flops, stages={name: record["stages"][name] for name in STAGES[:-1]})
    with pytest.raises(PruningError, match="has stages camera, view, lidar, fusion"):
        given_tables(recipe, model, reference)


def test_keys_go_by_what_the_tables_hold(tiny_nuscenes: Path, tables: Path) -> None:
    elsewhere = tables.with_name("copy.json")
    elsewhere.write_bytes(tables.read_bytes())
    here, there = (Workplace(asked(tiny_nuscenes, path)) for path in (tables, elsewhere))
    assert prune_inputs(here) == prune_inputs(there)
    measured_here = dataclasses.replace(here.recipe.prune, latency_tables="")
    assert prune_inputs(here) != prune_inputs(Workplace(dataclasses.replace(here.recipe, prune=measured_here)))
    changed(elsewhere, device="Another GPU")
    assert prune_inputs(here) != prune_inputs(there)
    assert tables_inputs(measured_here) == {}


GROUND = {"checkpoint": "c", "granularity": "channels", TIMED: "onnxruntime"}
BEFORE_TABLES = {
    ("flops", 1): ("37837a24c94a", "79d24b3bf490"),
    ("flops", 4): ("4ea561941329", "70aeeb8d72ea"),
    ("latency", 1): ("97a66ba98e8c", "79d24b3bf490"),
    ("latency", 4): ("9157d830092d", "d0fc59f03712"),
}
"""Keys of cells and of their scores by budget and rounds, as they were before there were tables to be given."""


@pytest.mark.parametrize(("asked_for", "keys"), BEFORE_TABLES.items(), ids=str)
def test_cells_without_tables_keep_their_keys(tables: Path, asked_for: tuple[str, int], keys: tuple[str, str]) -> None:
    budget, rounds = asked_for
    prune = PruneRecipe(budget=budget, channel_step=16, score_rounds=rounds)  # type: ignore[arg-type]
    cell = Cell(label="", prune=prune, finetune=TrainRecipe())
    given = dataclasses.replace(cell, prune=dataclasses.replace(prune, latency_tables=str(tables)))
    assert (cell.key(GROUND), cell.scoring_key(GROUND)) == keys
    counted = budget == "latency"
    assert (given.key(GROUND) != cell.key(GROUND)) == counted
    # Of one round, scores are the same whatever is selected by them.
    assert (given.scoring_key(GROUND) != cell.scoring_key(GROUND)) == (counted and rounds > 1)


def test_int8_is_calibrated_on_few_frames(tiny_nuscenes: Path, tmp_path: Path) -> None:
    """The tiny data set has four to train with; the recipe of a vehicle's int8 wants 128."""
    plain = Workplace(Recipe(data=DataRecipe(root=str(tiny_nuscenes)), engine=FP32))
    assert _with_few_frames(plain, tmp_path / "frames.json") is plain
    place = Workplace(dataclasses.replace(plain.recipe, engine=EngineRecipe(precision="int8")))
    few = _with_few_frames(place, tmp_path / "frames.json")
    manifest = frames_of(few, few.geometry, tmp_path, load_settings("nuscenes"))
    assert set(manifest.tokens) == set(place.reader.tokens("mini_train"))
    again = _with_few_frames(place, tmp_path / "frames.json")
    assert frames_of(again, again.geometry, tmp_path, load_settings("nuscenes")) == manifest


def test_folders_that_hold_something_else(tiny_nuscenes: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"holds no tables\.json"):
        write_widths(Recipe(data=DataRecipe(root=str(tiny_nuscenes)), engine=FP32), tmp_path)


def test_steps_that_leave_no_choice(tiny_nuscenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALTERMOMA_CACHE", str(tmp_path / "cache"))
    prune = PruneRecipe(channel_step=1024, lidar_channel_step=1024)
    with pytest.raises(PruningError, match="channel steps of 1024 leave every group as it is"):
        write_widths(Recipe(data=DataRecipe(root=str(tiny_nuscenes)), engine=FP32, prune=prune), tmp_path / "out")
    assert not (tmp_path / "out").exists()
