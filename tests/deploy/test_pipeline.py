"""Whole frames on the hand-written detector against its numpy oracle."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import GEOMETRY, OUTPUTS, content, frame, oracle, stage_graph

from altermoma.deploy.bundle import Bundle, write_bundle
from altermoma.deploy.manifest import STAGES, StageRecord, TensorSpec
from altermoma.deploy.onnxruntime_backend import OnnxRuntimeStage
from altermoma.deploy.pipeline import NO_POINTS, PARTS, Pipeline
from altermoma.deploy.self_check import align_proposals, check_bundle
from altermoma.deploy.stage_io import check_inputs
from altermoma.errors import BundleError, DataError, EngineError, UnsupportedError
from altermoma.frames import Frame
from altermoma.ops.decode import decode
from altermoma.ops.prepare import FramePreparer


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Pipeline:
    return Pipeline.from_bundle(bundle.folder, precision="fp32")


def answer(pipeline: Pipeline, of: Frame) -> Any:
    return pipeline(of.images_vhw3, of.points_p5, of.calibration)


@pytest.mark.parametrize("seed", [1, 2])
def test_frame_equals_the_oracle(pipeline: Pipeline, seed: int) -> None:
    of = frame(seed)
    found = answer(pipeline, of)
    wanted = decode(oracle(FramePreparer(GEOMETRY).prepare(of)), GEOMETRY)[0]
    assert len(wanted) == 16
    np.testing.assert_array_equal(found.boxes.labels_m, wanted.labels_m)
    np.testing.assert_allclose(found.boxes.geometry_m9, wanted.geometry_m9, atol=2e-5)
    assert found.warnings == ()
    assert set(found.timings_ms) == set(PARTS)
    assert all(ms > 0 for ms in found.timings_ms.values())


def test_fp16_tensors_between_stages(bundle: Bundle, pipeline: Pipeline) -> None:
    half = answer(Pipeline.from_bundle(bundle, precision="fp16"), frame(1)).boxes
    full = answer(pipeline, frame(1)).boxes
    difference = np.abs(half.scores_m - full.scores_m).max()
    assert 0 < difference < 1e-2


def test_two_precisions_need_a_choice(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="fp16, fp32"):
        Pipeline.from_bundle(bundle)


def test_empty_cloud_is_answered_and_flagged(pipeline: Pipeline) -> None:
    of = frame(1)
    empty = np.zeros((0, 5), np.float32)
    found = pipeline(of.images_vhw3, empty, of.calibration)
    assert found.warnings == (NO_POINTS,)
    assert "lidar" not in found.timings_ms
    host = FramePreparer(GEOMETRY).prepare(dataclasses.replace(of, points_p5=empty))
    wanted = decode(oracle(host), GEOMETRY)[0]
    np.testing.assert_allclose(found.boxes.geometry_m9, wanted.geometry_m9, atol=1e-5)


def test_points_only_outside_the_range_are_an_empty_cloud(pipeline: Pipeline) -> None:
    of = frame(1)
    far = np.full((5, 5), 1000.0, np.float32)
    assert pipeline(of.images_vhw3, far, of.calibration).warnings == (NO_POINTS,)


def test_voxels_that_reach_no_cell_are_answered(pipeline: Pipeline) -> None:
    """With 16 layers of voxels the topmost falls off the last window, which has no padding along z."""
    tall = dataclasses.replace(GEOMETRY, voxel_size=(0.5, 0.5, 0.4))
    of = frame(1)
    high = np.array([[3.9, 3.9, 2.99, 1.0, 0.0]], np.float32)
    host = FramePreparer(tall).prepare(dataclasses.replace(of, points_p5=high))
    assert host["voxels"].any(axis=1).sum() == 1
    assert len(host["out_table"]) == 0
    found = Pipeline(tall, pipeline.runners)(of.images_vhw3, high, of.calibration)
    assert "lidar" not in found.timings_ms
    wanted = decode(oracle(host), tall)[0]
    np.testing.assert_allclose(found.boxes.geometry_m9, wanted.geometry_m9, atol=1e-5)


def test_dead_camera_is_answered_and_named(pipeline: Pipeline) -> None:
    of = frame(1)
    images = of.images_vhw3.copy()
    images[1] = 0
    found = pipeline(images, of.points_p5, of.calibration)
    assert found.warnings == ("camera BACK is dead (an all-black image)",)
    assert len(found.boxes) == 16


def test_points_without_a_time_are_taken_as_of_now(pipeline: Pipeline) -> None:
    of = frame(1)
    unknown, known = of.points_p5.copy(), of.points_p5.copy()
    unknown[10:40, 4] = np.nan
    known[10:40, 4] = 0.0
    found, wanted = (pipeline(of.images_vhw3, points, of.calibration) for points in (unknown, known))
    assert found.warnings == ("30 points without a time lag: taken as measured now",)
    assert wanted.warnings == ()
    np.testing.assert_array_equal(found.boxes.geometry_m9, wanted.boxes.geometry_m9)
    assert np.isnan(unknown[10:40, 4]).all(), "the caller's points stay as they are"


def test_too_many_voxels_are_counted(pipeline: Pipeline) -> None:
    found = answer(pipeline, frame(3, points=1500))
    assert any("were dropped" in text for text in found.warnings)


def test_new_calibration_changes_the_tables_only(pipeline: Pipeline) -> None:
    of = frame(1)
    poses = of.calibration.camera_from_lidar_v44.copy()
    poses[:, :3, 3] = (0.5, 0.1, 0.3)
    moved = dataclasses.replace(of, calibration=dataclasses.replace(of.calibration, camera_from_lidar_v44=poses))
    before = answer(pipeline, of).boxes.geometry_m9
    after = answer(pipeline, moved).boxes
    wanted = decode(oracle(FramePreparer(GEOMETRY).prepare(moved)), GEOMETRY)[0]
    np.testing.assert_allclose(after.geometry_m9, wanted.geometry_m9, atol=2e-5)
    assert np.abs(before - after.geometry_m9).max() > 1e-3
    np.testing.assert_array_equal(answer(pipeline, of).boxes.geometry_m9, before)


def bad(of: Frame, change: str) -> tuple[Any, Any, Any]:
    images, points, calibration = of.images_vhw3, of.points_p5.copy(), of.calibration
    if change == "NaN":
        points[7, 2] = np.nan
    if change == "columns":
        points = points[:, :4]
    if change == "float64":
        points = points.astype(np.float64)
    if change == "one camera":
        images = images[:1]
    if change == "float images":
        images = images.astype(np.float32)
    if change == "intrinsics":
        calibration = dataclasses.replace(calibration, intrinsics_v33=calibration.intrinsics_v33[:, :2])
    if change == "poses":
        calibration = dataclasses.replace(calibration, camera_from_lidar_v44=calibration.camera_from_lidar_v44[:1])
    if change == "calibration NaN":
        calibration = dataclasses.replace(calibration, intrinsics_v33=calibration.intrinsics_v33 * np.nan)
    if change == "no focal length":
        calibration = dataclasses.replace(calibration, intrinsics_v33=calibration.intrinsics_v33 * 0)
    return images, points, calibration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("NaN", "1 of 300 points"),
        ("columns", "points_p5"),
        ("float64", "points_p5 is float64"),
        ("one camera", "cameras_vhw3"),
        ("float images", "cameras_vhw3 is float32"),
        ("intrinsics", "intrinsics_v33"),
        ("poses", "camera_from_lidar_v44"),
        ("calibration NaN", "calibration holds NaN"),
        ("no focal length", "focal length of 0"),
    ],
)
def test_bad_frames_are_errors(pipeline: Pipeline, change: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        pipeline(*bad(frame(1), change))
    assert caught.value.expected
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, [np.zeros((120, 160, 3), np.uint8)] * 2, "cameras_vhw3 is of type list"),
        (0, None, "cameras_vhw3 is of type NoneType"),
        (1, None, "points_p5 is of type NoneType"),
        (2, None, "calibration is of type NoneType"),
        (2, {"intrinsics": 1}, "calibration is of type dict"),
    ],
)
def test_what_is_no_frame_is_an_error(pipeline: Pipeline, place: int, value: Any, said: str) -> None:
    of = frame(1)
    given: list[Any] = [of.images_vhw3, of.points_p5, of.calibration]
    given[place] = value
    with pytest.raises(DataError, match=said):
        pipeline(*given)


@pytest.mark.parametrize("asked", [{"backend": "cuda"}, {"preparation": "gpu"}])
def test_what_there_is_not_is_no_fallback(bundle: Bundle, asked: dict[str, Any]) -> None:
    ((name, value),) = asked.items()
    with pytest.raises(UnsupportedError, match=f"{name} '{value}'"):
        Pipeline.from_bundle(bundle, precision="fp32", **asked)
    with pytest.raises(BundleError, match="holds no fp8 graphs") as caught:
        Pipeline.from_bundle(bundle, precision="fp8")
    assert "--engine" not in caught.value.remedy


def test_self_check_passes_and_reports_every_output(bundle: Bundle) -> None:
    checked = check_bundle(bundle.folder).require()
    assert {(c.precision, c.stage, c.tensor) for c in checked.tensors} == {
        (p, s, t) for p in ("fp32", "fp16") for s in STAGES for t in OUTPUTS[s]
    }
    assert max(c.difference for c in checked.tensors if c.precision == "fp32") < 1e-5
    assert max(c.difference for c in checked.tensors if c.precision == "fp16") > 1e-6
    assert [f.matched == f.boxes > 0 for f in checked.frames] == [True, True]


@pytest.mark.parametrize(("stage", "tensor"), [("fusion", "bev"), ("head", "center"), ("view", "camera_bev")])
def test_self_check_catches_a_wrong_stage(copied: Path, stage: str, tensor: str) -> None:
    """The reference of one output is moved by 1 %; the manifest is resealed, so only the numbers tell."""
    good = content(("fp32",))
    tensors = dict(good.reference.tensors)
    tensors[tensor] = tensors[tensor] * np.float32(1.01)
    changed = dataclasses.replace(good, reference=dataclasses.replace(good.reference, tensors=tensors))
    checked = check_bundle(write_bundle(copied, changed))
    assert not checked.passed
    with pytest.raises(EngineError, match=rf"fp32 {stage}\.{tensor}"):
        checked.require()


def test_self_check_survives_another_order_of_proposals(bundle: Bundle) -> None:
    wanted = {n: a for n, a in bundle.reference().tensors.items() if n in OUTPUTS["head"]}
    order = np.random.default_rng(0).permutation(16)
    shuffled = {n: a[..., order] for n, a in wanted.items()}
    for got, expected in align_proposals(wanted, shuffled, 1e-4).values():
        np.testing.assert_array_equal(got, expected)
    shuffled["center"] = shuffled["center"] + 5.0
    pairs = align_proposals(wanted, shuffled, 1e-4)
    assert np.abs(pairs["center"][0] - pairs["center"][1]).max() > 1.0


def record_of(bundle: Bundle, stage: str) -> StageRecord:
    return bundle.stages("fp32")[stage]


def test_stage_inputs_are_checked_by_name_dtype_and_shape(bundle: Bundle) -> None:
    record = record_of(bundle, "lidar")
    good = dict(bundle.reference().host)
    assert set(check_inputs(record, good, bounded=True)) == {s.name for s in record.inputs}
    for change, said in (
        ({"down_table_0_all": good["down_table_0_all"][:-1]}, "N1_all ="),
        ({"voxels": good["voxels"].astype(np.float64)}, "voxels is float64"),
        ({"out_table": good["out_table"].astype(np.int64)}, "out_table is int64"),
        ({"bev_table": good["bev_table"][:-1]}, "bev_table has shape"),
        ({"bev_table": good["bev_table"][None]}, "bev_table has shape"),
    ):
        with pytest.raises(EngineError, match=said):
            check_inputs(record, {**good, **change}, bounded=False)
    with pytest.raises(EngineError, match="not given bev_table"):
        check_inputs(record, {k: v for k, v in good.items() if k != "bev_table"}, bounded=False)


def test_sizes_beyond_the_profile_are_refused_where_engines_are_bound(bundle: Bundle) -> None:
    record = record_of(bundle, "lidar")
    host = dict(bundle.reference().host)
    host["voxels"] = np.zeros((5000, 5), np.float32)
    check_inputs(record, host, bounded=False)
    with pytest.raises(EngineError, match="axis N0 has size 5000"):
        check_inputs(record, host, bounded=True)


def test_record_that_is_not_the_graphs_is_refused(bundle: Bundle) -> None:
    record = record_of(bundle, "head")
    wrong = dataclasses.replace(record, inputs=(TensorSpec(name="bev", dtype="float16", shape=(1, 8, 4, 4)),))
    with pytest.raises(BundleError, match="as the manifest says"):
        OnnxRuntimeStage(stage_graph("head"), wrong)


def test_runtime_failure_names_the_stage(bundle: Bundle) -> None:
    record = record_of(bundle, "view")
    host = {**bundle.reference().tensors, **bundle.reference().host}
    host["pool_depth"] = host["pool_depth"] + 10**6
    with pytest.raises(EngineError, match="stage view failed"):
        OnnxRuntimeStage(bundle.graph(record), record).run(host)


def test_missing_stage_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="head"):
        Pipeline(
            GEOMETRY, {n: OnnxRuntimeStage(bundle.graph(r), r) for n, r in bundle.stages("fp32").items() if n != "head"}
        )


def test_deploy_runs_without_torch(bundle: Bundle) -> None:
    """A fresh interpreter in which torch, models and onnx cannot be imported runs a bundle."""
    code = f"""
import sys
own = ("models", "training", "pruning", "data", "export")
for name in ("torch", "onnx", "scipy", *("altermoma." + n for n in own)):
    sys.modules[name] = None
import pkgutil, importlib, altermoma.deploy
for found in pkgutil.iter_modules(altermoma.deploy.__path__):
    importlib.import_module("altermoma.deploy." + found.name)
from altermoma.deploy import Pipeline
from altermoma.deploy.self_check import check_bundle
check_bundle({str(bundle.folder)!r}).require()
print("boxes reproduced")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "boxes reproduced", done.stderr
