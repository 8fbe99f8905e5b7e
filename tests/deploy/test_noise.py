"""What an int8 stage is held to: rounding passes, a stage of half the size or with one wrong channel does not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import content

from altermoma.deploy.bundle import Bundle, write_bundle
from altermoma.deploy.cross_check import cross_check, require_agreement, same_graphs
from altermoma.deploy.manifest import StageRecord, from_text, to_text
from altermoma.deploy.noise import FLOOR, MARGIN, limits, stage_noise, worst
from altermoma.deploy.self_check import check_bundle, check_stage
from altermoma.deploy.stage_io import Arrays, StageRunner
from altermoma.deploy.tensorrt_builder import BuildOptions, engine_key
from altermoma.errors import EngineError

CEILING = 0.7
STEP = 2.0**-6
"""Rounding of the toy int8 stages, over each tensor's largest number."""


class Changed:
    """A stage whose outputs are changed on the way out."""

    def __init__(self, stage: StageRunner, **changes: Any) -> None:
        self.record: StageRecord = stage.record
        self._stage, self._changes = stage, changes

    def run(self, inputs: Arrays) -> Arrays:
        outputs = self._stage.run(inputs)
        return {name: self._changes.get(name, lambda array: array)(array) for name, array in outputs.items()}


def halved(array: NDArray[Any]) -> NDArray[Any]:
    return (array * array.dtype.type(0.5)).astype(array.dtype)


def doubled_channel(axis: int, channel: int) -> Any:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        wrong = array.copy()
        np.moveaxis(wrong, axis, 0)[channel] *= 2
        return wrong

    return change


def rounded(array: NDArray[Any]) -> NDArray[Any]:
    step = STEP * float(np.abs(array).max())
    return (np.round(array / step) * step).astype(array.dtype)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy's fp32 graphs called int8, with the noise of numbers that are rounded."""
    made = content(("fp32",))
    tensors = made.reference.tensors
    floats = {name: rounded(array) if array.dtype.kind == "f" else array for name, array in tensors.items()}
    graphs = {}
    for stage, graph in made.graphs["fp32"].items():
        names = [spec.name for spec in graph.outputs]
        noise = stage_noise({n: tensors[n] for n in names}, {n: floats[n] for n in names})
        rounding = {name: {measure: value / 4 for measure, value in found.items()} for name, found in noise.items()}
        graphs[stage] = dataclasses.replace(graph, noise=noise, rounding=rounding)
    changed = dataclasses.replace(made, graphs={"int8": graphs}, tolerances={"int8": CEILING})
    return write_bundle(tmp_path_factory.mktemp("int8") / "bundle", changed)


def naive(found: NDArray[Any], wanted: NDArray[Any], axis: int) -> tuple[float, float, float]:
    """Noise, gain and the worst channel's gain, number by number."""
    off = sum((float(a) - float(b)) ** 2 for a, b in zip(found.flat, wanted.flat, strict=True))
    power = sum(float(b) ** 2 for b in wanted.flat)
    gains = []
    for i in range(wanted.shape[axis]):
        pairs = list(zip(np.take(found, i, axis).flat, np.take(wanted, i, axis).flat, strict=True))
        gains.append(abs(sum(float(a) * float(b) for a, b in pairs) / sum(float(b) ** 2 for _, b in pairs) - 1))
    whole = sum(float(a) * float(b) for a, b in zip(found.flat, wanted.flat, strict=True)) / power
    return (off / power) ** 0.5, abs(whole - 1), max(gains)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_measures_are_those_of_the_sums_written_out(axis: int) -> None:
    rng = np.random.default_rng(axis)
    wanted = rng.normal(size=(3, 5, 4)).astype(np.float32)
    found = (wanted * 0.9 + 0.2 * rng.normal(size=wanted.shape)).astype(np.float32)
    measured = stage_noise({"out": wanted}, {"out": found})["out"]
    told = (measured["noise"], measured["gain"], measured[f"gain along {axis}"])
    assert told == pytest.approx(naive(found, wanted, axis), rel=1e-6)


def test_empty_and_dark_outputs_have_no_gain_and_any_number_in_their_place_is_noise() -> None:
    dark, empty = np.zeros((1, 2, 3), np.float32), np.zeros((1, 0), np.float32)
    assert set(stage_noise({"a": dark, "b": empty}, {"a": dark, "b": empty})["a"].values()) == {0.0}
    lit = dark.copy()
    lit[0, 0, 0] = 1e-3
    assert stage_noise({"a": dark}, {"a": lit})["a"]["noise"] > 1e6
    assert stage_noise({"a": dark}, {"a": lit * np.float32(np.nan)})["a"] == {"noise": float("inf")}


def test_limits_are_what_was_measured_times_the_margin_between_floor_and_ceiling() -> None:
    held = limits({"noise": 0.1, "gain": 0.001, "gain along 1": 0.2}, CEILING)
    assert held == {"noise": MARGIN * 0.1, "gain": FLOOR, "gain along 1": MARGIN * 0.2}
    assert limits({"noise": 0.6, "gain": 0.3}, CEILING)["noise"] == CEILING
    assert limits({"lost": 0.01}, CEILING) == {"lost": 0.1}
    assert worst({"noise": 0.1, "gain": 0.06, "gain along 9": 9.0}, held) == ("gain", 0.06, FLOOR)


def test_rounded_stages_pass_in_every_check(int8: Bundle) -> None:
    check_bundle(int8).require()
    stages, reference = same_graphs(int8, "int8"), int8.reference()
    for name, stage in stages.items():
        floats = {spec.name: rounded for spec in stage.record.outputs if spec.name != "query_labels"}
        assert all(check.passed for check in check_stage("int8", Changed(stage, **floats), reference, CEILING)), name


@pytest.mark.parametrize(
    ("stage", "tensor"),
    [("camera", "depth_weights"), ("camera", "pixel_features"), ("view", "camera_bev"), ("lidar", "lidar_bev"),
     ("fusion", "bev"), ("head", "query_scores"), ("head", "heatmap"), ("head", "dim"), ("head", "vel")],
)  # fmt: skip
@pytest.mark.parametrize("change", [halved, doubled_channel(1, 0)])
def test_half_the_size_and_one_channel_twice_as_large_fail(int8: Bundle, stage: str, tensor: str, change: Any) -> None:
    """Against the reference and against ONNX Runtime alike; noise below 0.7 alone let both pass."""
    good, reference = same_graphs(int8, "int8"), int8.reference()
    wrong = Changed(good[stage], **{tensor: change})
    (found,) = [check for check in check_stage("int8", wrong, reference, CEILING) if not check.passed]
    assert found.tensor == tensor
    with pytest.raises(EngineError, match=rf"int8 {stage}\.{tensor}: (noise|gain)"):
        require_agreement(cross_check("int8", {**good, stage: wrong}, good, reference, CEILING))


def test_a_graph_that_rounds_elsewhere_is_no_yardstick(int8: Bundle) -> None:
    good = same_graphs(int8, "int8")["fusion"]
    other = Changed(good)
    other.record = dataclasses.replace(good.record, file="stages/int8-onnxruntime/fusion.onnx")
    with pytest.raises(ValueError, match="is held against stages/int8-onnxruntime/fusion"):
        cross_check("int8", {"fusion": good}, {"fusion": other}, int8.reference(), CEILING)


def test_one_dead_camera_fails(int8: Bundle) -> None:
    def dead(array: NDArray[Any]) -> NDArray[Any]:
        wrong = array.copy()
        wrong[1] = 0
        return wrong

    wrong = Changed(same_graphs(int8, "int8")["camera"], pixel_features=dead)
    (found,) = [check for check in check_stage("int8", wrong, int8.reference(), CEILING) if not check.passed]
    assert str(found).startswith("int8 camera.pixel_features: gain along 0 1.00e+00, allowed ")


def test_proposals_in_another_order_are_the_same_and_moved_ones_are_lost(int8: Bundle) -> None:
    head, reference = same_graphs(int8, "int8")["head"], int8.reference()
    record = head.record
    order = np.random.default_rng(0).permutation(reference.tensors["query_labels"].shape[-1])
    shuffled = Changed(head, **{spec.name: lambda array: array[..., order] for spec in record.outputs})
    assert all(check.passed for check in check_stage("int8", shuffled, reference, CEILING))
    moved = Changed(head, center=lambda array: array + np.float32(9))
    failed = {check.tensor: check for check in check_stage("int8", moved, reference, CEILING) if not check.passed}
    assert failed["query_labels"].measure == "lost"
    assert failed["query_labels"].difference > 0.5


def test_few_proposals_that_are_far_off_are_left_to_the_check_of_the_frame(int8: Bundle) -> None:
    head, reference = same_graphs(int8, "int8")["head"], int8.reference()

    def turned(count: int) -> Any:
        def change(array: NDArray[Any]) -> NDArray[Any]:
            wrong = array.copy()
            wrong[..., :count] *= -1
            return wrong

        return change

    many = reference.tensors["rot"].shape[-1]
    one = check_stage("int8", Changed(head, rot=turned(1)), reference, CEILING)
    assert all(check.passed for check in one)
    half = check_stage("int8", Changed(head, rot=turned(many // 2)), reference, CEILING)
    assert [check.tensor for check in half if not check.passed] == ["rot"]


def test_what_is_not_finite_fails(int8: Bundle) -> None:
    head = same_graphs(int8, "int8")["head"]
    wrong = Changed(head, height=lambda array: array * np.float32(np.nan))
    (bad,) = [check for check in check_stage("int8", wrong, int8.reference(), CEILING) if not check.finite]
    assert str(bad) == "int8 head.height holds NaN or infinity"
    assert not bad.passed
    with pytest.raises(EngineError, match=r"head\.height: NaN or infinity"):
        require_agreement(cross_check("int8", {"head": wrong}, {"head": head}, int8.reference(), CEILING))


def test_bundles_of_before_open_and_are_held_to_the_ceiling(int8: Bundle) -> None:
    record = json.loads(to_text(int8.manifest))
    del record["seal"]
    for stage in record["stages"]["int8"].values():
        del stage["noise"], stage["rounding"]
    record["seal"] = hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    manifest = from_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "here")
    assert manifest.stages["int8"]["fusion"].noise == {}
    old = dataclasses.replace(int8, manifest=manifest)
    for factor, passes in ((0.5, True), (0.2, False)):
        stage = Changed(same_graphs(old, "int8")["fusion"], bev=lambda a, f=factor: a * np.float32(f))
        (check,) = check_stage("int8", stage, old.reference(), CEILING)
        assert check.passed == passes
        assert check.measure == "noise"


def test_what_was_measured_is_kept_and_builds_no_other_engine(int8: Bundle) -> None:
    assert from_text(to_text(int8.manifest), "here") == int8.manifest
    record, options = int8.stages("int8")["fusion"], BuildOptions(precision="int8")
    keys = {
        engine_key("0", each, options, tensorrt="10.3.0", device="gpu")
        for each in (record, dataclasses.replace(record, noise={}, rounding={}))
    }
    assert len(keys) == 1


def test_the_readme_has_no_verdict_on_the_numbers_of_int8(int8: Bundle) -> None:
    text = (int8.folder / "README.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("    polygraphy ")]
    assert commands
    for command in commands:
        assert command.endswith("--validate")
        assert ("--onnxrt" in command) != ("--trt" in command)
    assert "--atol" not in text
    assert "and no more" in text


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["lidar", "head"])
def test_readme_commands_of_int8_pass_on_onnx_runtime(int8: Bundle, tmp_path: Path, stage: str) -> None:
    from test_vendor_commands import feed, of_bundle, run_polygraphy

    folder = Path(shutil.copytree(int8.folder, tmp_path / "bundle"))
    feed(folder)
    done = run_polygraphy(of_bundle(int8, "int8", stage).polygraphy(), folder)
    assert done.returncode == 0, done.stdout + done.stderr
