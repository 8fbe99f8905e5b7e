"""Whole models in int8: every preset kind, pruned and 2:4, on every TensorRT's lint, ONNX Runtime and polygraphy."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_frames import exported, random_frame
from onnx import numpy_helper
from polygraphy.backend.onnx import OnnxFromBytes
from polygraphy.backend.onnxrt import SessionFromOnnx

from altermoma.calib.export_int8 import Int8Export, decibels, export_int8, noise_of
from altermoma.calib.insert import ONNX_RUNTIME
from altermoma.calib.int8 import StagePlan, all_groups, plan_stages, quantised, watch
from altermoma.calib.mixed import int8_nodes
from altermoma.calib.observe import observe
from altermoma.calib.ranges import Ranges, find_ranges, graph_key
from altermoma.calib.scales import rounded_weight, weight_scales
from altermoma.calib.settings import CalibrationSettings
from altermoma.calib.statistics import TensorStatistics
from altermoma.deploy.noise import limits, worst
from altermoma.errors import DataError, ExportError
from altermoma.export.contract import load_contract
from altermoma.export.export_model import ExportResult
from altermoma.export.graph import copy_model
from altermoma.export.lint import lint
from altermoma.export.passes.emulate_half import emulate_half
from altermoma.workflow.graphs import int8_graphs, stage_graphs

PRESET = "bevfusion-tiny"
TOKENS = ("1", "2", "3", "4")


def read(token: str) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return dict(random_frame(900, seed=int(token)))


@functools.cache
def plans() -> dict[str, StagePlan]:
    return plan_stages(exported("fp32").stages, load_contract(PRESET))


def ranges_of(statistics: dict[str, dict[str, TensorStatistics]], fp32: ExportResult) -> Ranges:
    settings = CalibrationSettings(method="minmax")
    return Ranges(
        model=PRESET,
        graphs={name: graph_key(graph) for name, graph in fp32.stages.items()},
        manifest="m",
        frames=len(TOKENS),
        settings=settings.to_dict(),
        tensors=find_ranges(statistics, settings),
    )


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Int8Export:
    groups = frozenset(all_groups(plans()))
    kept = tmp_path_factory.mktemp("work") / "statistics.npz"
    statistics = observe(watch(plans(), groups), TOKENS, read, kept)
    ranges = ranges_of(statistics, exported("fp32"))
    return export_int8(exported("fp32"), plans(), load_contract(PRESET), ranges, groups, 0.5)


@pytest.mark.parametrize("stage", ["camera", "lidar", "fusion", "head"])
def test_polygraphy_and_onnxruntime_load_both_graphs(int8: Int8Export, stage: str) -> None:
    for graph in (int8.tensorrt.stages[stage], int8.onnxruntime[stage]):
        onnx.checker.check_model(graph, full_check=True)
        assert SessionFromOnnx(graph.SerializeToString())() is not None
        assert OnnxFromBytes(graph.SerializeToString())() is not None


def test_only_tensorrt_gets_fp16_between_stages(int8: Int8Export) -> None:
    outputs = {spec["name"]: spec["dtype"] for spec in int8.tensorrt.records["lidar"]["outputs"]}
    assert outputs == {"lidar_bev": "float16"}
    assert int8.records["lidar"]["outputs"][0]["dtype"] == "float32"
    (graph_output,) = int8.tensorrt.stages["lidar"].graph.output
    assert graph_output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize("version", ["8.5.2", "8.6.1", "10.3.0", "11.4.1"])
def test_the_lint_of_every_version_is_content(int8: Int8Export, version: str) -> None:
    for name, graph in int8.tensorrt.stages.items():
        findings = [f for f in lint(graph, version, name) if f.rule != "unsupported-operator"]
        assert findings == []


def test_no_cast_comes_between_a_pair_and_its_product(int8: Int8Export) -> None:
    for graph in int8.tensorrt.stages.values():
        makers = {name: node for node in graph.graph.node for name in node.output}
        inside = int8_nodes(graph)
        for node in graph.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.name in inside:
                kinds = [makers[name].op_type for name in node.input[:2]]
                assert kinds[1] == "DequantizeLinear"
                assert kinds[0] != "Cast"


def test_little_is_lost_and_much_is_int8(int8: Int8Export) -> None:
    record = int8.to_dict()
    assert record["int8_macs"] > 0.85
    assert record["int8_macs_by_stage"]["view"] == 0.0
    for stages in int8.signal_db.values():
        assert min(db for tensors in stages.values() for db in tensors.values()) > 15


def test_weights_lie_in_the_file_as_int8(int8: Int8Export) -> None:
    size = sum(len(graph.SerializeToString()) for graph in int8.onnxruntime.values())
    assert size < 0.5 * sum(len(graph.SerializeToString()) for graph in exported("fp32").stages.values())


def test_observing_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    lidar = {name: plan for name, plan in plans().items() if name == "lidar"}
    watched = watch(lidar, frozenset(all_groups(lidar)))
    whole = observe(watched, TOKENS[:3], read, tmp_path / "whole.npz")
    asked: list[str] = []

    def stopping(token: str) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        asked.append(token)
        return read(token)

    observe(watched, TOKENS[:2], stopping, tmp_path / "part.npz")
    found = observe(watched, TOKENS[:3], stopping, tmp_path / "part.npz")
    assert asked == ["1", "2", "3"]
    for name, statistics in whole["lidar"].items():
        np.testing.assert_array_equal(found["lidar"][name].counts_b, statistics.counts_b)
        assert found["lidar"][name].frames == 3


def test_activations_that_are_not_finite_end_it(tmp_path: Path) -> None:
    lidar = {name: plan for name, plan in plans().items() if name == "lidar"}

    def broken(token: str) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        inputs = read(token)
        return inputs | {"voxels": inputs["voxels"] * np.float32(np.nan)}

    with pytest.raises(DataError, match="holds NaN or infinity"):
        observe(watch(lidar, frozenset(all_groups(lidar))), TOKENS, broken, tmp_path / "kept.npz")
    assert not list(tmp_path.iterdir())


def test_quantising_nothing_changes_nothing() -> None:
    plan = plans()["fusion"]
    assert quantised(plan, frozenset(), {}, ONNX_RUNTIME).SerializeToString() == plan.graph.SerializeToString()


def test_two_of_four_stay_two_of_four() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 64, 3, 3)).astype(np.float32)
    blocks = np.moveaxis(weight, 1, -1).reshape(-1, 4)
    blocks[np.arange(len(blocks))[:, None], np.argsort(np.abs(blocks), axis=1)[:, :2]] = 0
    sparse = np.moveaxis(blocks.reshape(32, 3, 3, 64), -1, 1)
    numbers = rounded_weight(sparse, weight_scales(sparse, 0), 0)
    kept = (np.moveaxis(numbers, 1, -1).reshape(-1, 4) != 0).sum(axis=1)
    assert kept.max() <= 2


def test_a_graph_that_was_not_calibrated_is_an_error(int8: Int8Export) -> None:
    ranges = Ranges(model=PRESET, graphs={}, manifest="m", frames=1, settings={}, tensors={})
    with pytest.raises(ExportError, match="no range for"):
        export_int8(exported("fp32"), plans(), load_contract(PRESET), ranges, frozenset(all_groups(plans())), 0.5)


def test_what_the_checks_hold_a_stage_to_is_the_noise_that_was_measured(int8: Int8Export) -> None:
    """Noise is what decibels tell, and other roundings move a graph less than it is off from torch."""
    for runtime, stages in int8.noise.items():
        for stage, tensors in stages.items():
            assert set(tensors) == {spec["name"] for spec in int8.records[stage]["outputs"]}
            for tensor, db in int8.signal_db[runtime].get(stage, {}).items():
                assert tensors[tensor]["noise"] == pytest.approx(10 ** (-db / 20), rel=1e-6)
    assert set(int8.rounding) == set(int8.tensorrt.stages)
    signed, unsigned = int8_graphs(int8)
    for name in int8.tensorrt.stages:
        assert signed[name].noise == int8.noise["tensorrt"][name]
        assert signed[name].rounding == int8.rounding[name]
        assert unsigned[name].noise == int8.noise["onnxruntime"][name]
    assert 0 < int8.rounding["fusion"]["bev"]["noise"] < int8.noise["tensorrt"]["fusion"]["bev"]["noise"]


def test_one_channels_scale_in_the_last_weights_that_is_wrong_by_two_is_found(int8: Int8Export) -> None:
    graph = copy_model(int8.tensorrt.stages["fusion"])
    scales = {item.name: item for item in graph.graph.initializer}
    makers = {name: node for node in graph.graph.node for name in node.output}
    products = [node for node in graph.graph.node if node.op_type == "Conv" and node.input[1] in makers]
    wrong = scales[makers[products[-1].input[1]].input[1]]
    factors = numpy_helper.to_array(wrong).copy()
    factors.reshape(-1)[0] *= 2
    wrong.CopyFrom(numpy_helper.from_array(factors, wrong.name))
    fp32 = exported("fp32")
    held = limits(int8.noise["tensorrt"]["fusion"]["bev"], 0.7)
    for model, broken in ((int8.tensorrt.stages["fusion"], False), (graph, True)):
        measured = noise_of({"fusion": emulate_half(model)}, fp32)["fusion"]["bev"]
        _, found, allowed = worst(measured, held)
        assert (found > allowed) == broken
        assert measured["noise"] < 0.7


def test_a_stage_of_half_the_size_has_noise_though_its_direction_is_right() -> None:
    """A cosine, which the export went by once, tells nothing of it."""
    graph = copy_model(exported("fp32").stages["fusion"])
    (output,) = graph.graph.output
    last = next(node for node in graph.graph.node if output.name in node.output)
    last.output[list(last.output).index(output.name)] = "whole"
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    graph.graph.node.append(onnx.helper.make_node("Mul", ["whole", "half"], [output.name], name="halve"))
    found = noise_of({"fusion": graph}, exported("fp32"))["fusion"]["bev"]
    assert found["noise"] == pytest.approx(0.5, rel=1e-3)
    assert found["gain"] == pytest.approx(0.5, rel=1e-3)


def test_decibels_are_those_of_a_known_noise() -> None:
    clean = np.ones(1000, np.float32)
    assert decibels(clean, clean * np.float32(1.1)) == pytest.approx(20.0, abs=0.01)
    assert decibels(clean, clean) == 200.0


def test_a_whole_model_in_fp8_is_linted_and_held_against_torch(tmp_path: Path) -> None:
    """Its unsigned graphs stay int8: ONNX Runtime's CPU has no FP8 kernels."""
    import dataclasses

    groups = frozenset(group for group in all_groups(plans()) if group.startswith(("fusion/", "lidar/")))
    statistics = observe(watch(plans(), groups), TOKENS, read, tmp_path / "statistics.npz")
    ranges = ranges_of(statistics, exported("fp32"))
    ranges = dataclasses.replace(ranges, settings={**ranges.settings, "number": "fp8"})
    found = export_int8(exported("fp32"), plans(), load_contract(PRESET), ranges, groups, 0.5)
    kinds = {item.data_type for item in found.tensorrt.stages["fusion"].graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds
    assert onnx.TensorProto.INT8 not in kinds
    assert min(found.signal_db["tensorrt"]["fusion"].values()) > 15
    unsigned = {item.data_type for item in found.onnxruntime["fusion"].graph.initializer}
    assert {onnx.TensorProto.UINT8, onnx.TensorProto.INT8} <= unsigned
    told = [
        {name: record.numbers for name, record in stage_graphs(graphs, found.records).items()}
        for graphs in (found.tensorrt.stages, found.onnxruntime)
    ]
    quantised = {"fusion", "lidar"}
    assert told == [{name: number if name in quantised else "" for name in plans()} for number in ("fp8", "int8")]


def test_graphs_that_leave_too_little_of_the_signal_are_an_error(tmp_path: Path) -> None:
    import dataclasses

    from altermoma.calib.scales import Range

    groups = frozenset(plans()["fusion"].groups)
    statistics = observe(watch(plans(), groups), TOKENS, read, tmp_path / "statistics.npz")
    ranges = ranges_of(statistics, exported("fp32"))
    narrow = {name: Range(low=item.low / 50, high=item.high / 50) for name, item in ranges.tensors["fusion"].items()}
    ranges = dataclasses.replace(ranges, tensors={**ranges.tensors, "fusion": narrow})
    with pytest.raises(ExportError, match=r"int8 leaves too little of the signal:\n  fusion\.bev"):
        export_int8(exported("fp32"), plans(), load_contract(PRESET), ranges, groups, 0.5)
