"""The whole model: graphs equal torch at other sizes than they were traced with, for every precision and target."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx
import pytest
import torch
from export_frames import PRESET, exported, random_frame, random_model
from torch import nn

from altermoma.errors import ExportError, RecipeError, UnsupportedError
from altermoma.export.contract import load_contract
from altermoma.export.export_model import export_model
from altermoma.export.graph import dims_of
from altermoma.export.parity import measure_parity, open_session, raise_on_drift, run_session, torch_reference
from altermoma.export.passes.decompose_norm import decompose_norm
from altermoma.models.config import BevConfig, CameraConfig, LidarConfig, ModelConfig
from altermoma.models.stages import stage_modules
from altermoma.recipe import ExportRecipe, Precision

STAGES = ["camera", "view", "lidar", "fusion", "head"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parity_of_stages_and_frame(precision: Precision) -> None:
    result = exported(precision)
    assert list(result.stages) == STAGES
    scopes = {(item.scope, item.stage) for item in result.parity}
    assert scopes == {(scope, stage) for scope in ("stage", "frame") for stage in STAGES}
    bound = 2e-5 if precision == "fp32" else 2e-2
    assert max(item.scaled_max for item in result.parity) < bound
    assert min(item.cosine for item in result.parity) > 1 - bound


@pytest.mark.parametrize("points", [0, 1, 9000])
def test_frames_of_other_sizes(points: int) -> None:
    """Including an empty cloud: the LiDAR stage takes zero rows."""
    result, inputs = exported("fp32"), random_frame(points, seed=1)
    model = random_model().eval()
    reference = torch_reference(stage_modules(model), inputs)
    parity = measure_parity(result.stages, load_contract(PRESET), dict(inputs), reference, 1e-4, 1e-4)
    assert [str(item) for item in parity if not item.passed] == []
    assert len(inputs["voxels"]) == 0 if points == 0 else len(inputs["voxels"]) > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_are_opset_17_and_hold_what_they_say(precision: Precision) -> None:
    result = exported(precision)
    for name, graph in result.stages.items():
        onnx.checker.check_model(graph, full_check=True)
        assert [(item.domain, item.version) for item in graph.opset_import] == [("", 17)]
        assert graph.ir_version == 8
        metadata = {item.key: item.value for item in graph.metadata_props}
        assert (metadata["stage"], metadata["preset"], metadata["precision"]) == (name, PRESET, precision)
        assert len(metadata["content_key"]) == 12
        record = result.records[name]
        for infos, tensors in ((graph.graph.input, record["inputs"]), (graph.graph.output, record["outputs"])):
            for info, tensor in zip(infos, tensors, strict=True):
                kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
                assert (info.name, str(kind)) == (tensor["name"], tensor["dtype"])
                assert dims_of(info.type.tensor_type) == tensor["shape"]
                assert tensor["meaning"] in info.doc_string
        named = {d for tensor in (*record["inputs"], *record["outputs"]) for d in tensor["shape"] if isinstance(d, str)}
        assert named == set(record["axes"])


def test_no_irregular_operators_and_no_leftovers() -> None:
    for precision in ("fp32", "fp16"):
        for graph in exported(precision).stages.values():
            operators = {node.op_type for node in graph.graph.node}
            assert not operators & {"NonZero", "Unique", "Loop", "If", "Scan", "ScatterND", "ScatterElements"}
            assert not operators & {"BatchNormalization", "Identity", "Constant", "Shape", "Dropout"}


def named(dimension: str) -> set[str]:
    """Axes in `192*R1+R2+1`; the whole where it is nothing of that kind."""
    parts = [part.rpartition("*")[2] for part in dimension.split("+")]
    return {part for part in parts if not part.isdigit()} or {dimension}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_inner_size_is_known_by_number_or_name(precision: Precision) -> None:
    axes = set(load_contract(PRESET).axes)
    for graph in exported(precision).stages.values():
        for info in graph.graph.value_info:
            dims = dims_of(info.type.tensor_type)
            assert dims is not None
            assert all(isinstance(d, int) or named(d or "") <= axes for d in dims), (info.name, dims)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nodes_are_named_by_the_modules_that_they_are_of(precision: Precision) -> None:
    """By whole paths, so that each layer is found: its own nodes begin with its path, and no node is of no module."""
    model = random_model()
    norms = nn.BatchNorm1d, nn.BatchNorm2d
    weighted = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    convolutions = {name for name, module in weighted.items() if not isinstance(module, norms)}
    paths = {name.replace(".", "/") for name, _ in model.named_modules() if name}
    for stage, graph in exported(precision).stages.items():
        tensors = {info.name for info in (*graph.graph.input, *graph.graph.output)}
        for node in graph.graph.node:
            owners = {"/".join(node.name.split("/")[:count]) for count in range(1, node.name.count("/") + 1)}
            assert owners & (paths | {stage} | tensors), node.name
            convolutions -= {owner.replace("/", ".") for owner in owners}
    # Positions of all cells and rows by class are known beforehand: they are constants in the graph.
    assert all(re.search(r"class_encoding|cross_posembed", name) for name in convolutions), convolutions


def test_weights_have_names() -> None:
    weights = {item.name for graph in exported("fp32").stages.values() for item in graph.graph.initializer}
    assert not [name for name in weights if "::" in name]


def test_oldest_target_gets_no_layer_norm() -> None:
    """8.5 does not read LayerNormalization; written out it gives the same numbers."""
    assert "LayerNormalization" in {node.op_type for node in exported("fp16").stages["head"].graph.node}
    assert "LayerNormalization" not in {node.op_type for node in exported("fp16", "8.5.2").stages["head"].graph.node}
    result = exported("fp32")
    bev = {"bev": result.reference["bev"]}
    native, plain = result.stages["head"], decompose_norm(result.stages["head"])
    first, second = (run_session(open_session(head), bev) for head in (native, plain))
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=1e-4)


def test_tensors_between_stages_are_half_and_the_rest_is_not() -> None:
    records = exported("fp16").records
    kinds = {t["name"]: t["dtype"] for record in records.values() for t in (*record["inputs"], *record["outputs"])}
    between = {"depth_weights", "pixel_features", "camera_bev", "lidar_bev", "bev"}
    assert {name for name, kind in kinds.items() if kind == "float16"} == between
    assert kinds["voxels"] == kinds["images"] == kinds["center"] == "float32"
    assert kinds["subm_table_0_mid"] == kinds["query_labels"] == "int32"


def test_half_graphs_are_half_as_large() -> None:
    sizes = {p: sum(g.ByteSize() for g in exported(p).stages.values()) for p in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.62 * sizes["fp32"]


def test_other_widths_need_no_other_contract() -> None:
    """As after pruning: odd widths everywhere, one contract."""
    config = ModelConfig(
        camera=CameraConfig(channels=23, depthnet=40),
        lidar=LidarConfig(base=9, stages=((9, 19), (19, 33), (33,)), channels=27),
        bev=BevConfig(neck=(24, 31)),
    )
    model = random_model(config).train()
    model.img_backbone.eval()
    result = export_model(
        model, random_frame(2000), preset=PRESET, precision="fp32", trt_version="8.6.1", recipe=ExportRecipe()
    )
    assert result.records["view"]["outputs"][0]["shape"] == [1, 23, 80, 80]
    assert result.records["lidar"]["outputs"][0]["shape"] == [1, 54, 80, 80]
    assert result.records["head"]["inputs"][0]["shape"] == [1, 55, 80, 80]
    assert model.training
    assert not model.img_backbone.training


def test_polygraphy_runs_the_graphs() -> None:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    result = exported("fp32")
    feed = {"camera_bev": result.reference["camera_bev"], "lidar_bev": result.reference["lidar_bev"]}
    with OnnxrtRunner(SessionFromOnnx(result.stages["fusion"].SerializeToString())) as runner:
        found = runner.infer(feed)["bev"]
    np.testing.assert_allclose(found, result.reference["bev"], atol=1e-4)


def test_a_broken_graph_is_told_by_its_stage() -> None:
    result = exported("fp32")
    stages = dict(result.stages)
    twin = onnx.ModelProto()
    twin.CopyFrom(stages["fusion"])
    weight = next(item for item in twin.graph.initializer if len(item.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    stages["fusion"] = twin
    parity = measure_parity(stages, load_contract(PRESET), result.inputs, result.reference, 1e-4, 1e-4)
    failed = [(item.scope, item.stage) for item in parity if not item.passed]
    assert failed[0] == ("stage", "fusion")
    assert ("stage", "head") not in failed
    assert ("frame", "head") in failed


def test_too_strict_a_tolerance_names_the_first_stage() -> None:
    strict = [dataclasses.replace(item, tolerance=1e-6) for item in exported("fp16").parity]
    with pytest.raises(ExportError, match="stage camera differs from torch"):
        raise_on_drift(strict)
    raise_on_drift(exported("fp16").parity)


def test_weights_beyond_half_precision_name_the_tensor() -> None:
    model = random_model()
    with torch.no_grad():
        model.pts_backbone.blocks[0][0].weight[0, 0, 0, 0] = 1e6  # type: ignore[index]
    with pytest.raises(ExportError, match=r"pts_backbone[./]blocks.*holds.*\n.*65504"):
        export_model(
            model, random_frame(500), preset=PRESET, precision="fp16", trt_version="10.3", recipe=ExportRecipe()
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"precision": "int8"}, UnsupportedError, "int8"),
        ({"recipe": ExportRecipe(opset=18)}, RecipeError, "opset"),
        ({"preset": "bevfusion-huge"}, RecipeError, "no stage contract"),
        ({"trt_version": "seven"}, RecipeError, "TensorRT version"),
    ],
)
def test_what_cannot_be_asked_for(change: dict[str, object], error: type[Exception], message: str) -> None:
    asked = {"preset": PRESET, "precision": "fp32", "trt_version": "10.3", "recipe": ExportRecipe(), **change}
    with pytest.raises(error, match=message):
        export_model(random_model(), random_frame(100), **asked)  # type: ignore[arg-type]


def test_inputs_that_do_not_fit() -> None:
    inputs = random_frame(100)
    asked = {"preset": PRESET, "precision": "fp32", "trt_version": "10.3", "recipe": ExportRecipe()}
    with pytest.raises(RecipeError, match="depth"):
        export_model(random_model(), {**inputs, "depth": inputs["depth"][:, :, :48]}, **asked)  # type: ignore[arg-type]
    del inputs["out_table"]
    with pytest.raises(RecipeError, match="lacks out_table"):
        export_model(random_model(), inputs, **asked)  # type: ignore[arg-type]
