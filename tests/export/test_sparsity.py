"""2:4 in exported graphs: held against polygraphy, against the model's own list, and against graphs that break it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import export_frames
import numpy as np
import onnx
import pytest
import torch
from export_frames import PRESET, random_frame, random_model
from onnx import TensorProto, helper, numpy_helper

from altermoma.errors import ExportError
from altermoma.export.contract import load_contract
from altermoma.export.export_model import ExportResult, export_model
from altermoma.export.graph import initializers, set_initializer
from altermoma.export.sparsity import (
    ACTIVATIONS,
    LayerSparsity,
    SparsityReport,
    holds_two_four,
    product_weights,
    read_stage,
    require_two_four,
    sparsity_report,
)
from altermoma.models.fusion import FusionModel
from altermoma.pruning.two_four import weights_of
from altermoma.pruning.two_four_prune import prune_two_four
from altermoma.pruning.two_four_rules import FULL_PRECISION, GROUPED, TRANSPOSED
from altermoma.recipe import ExportRecipe, Precision

POLYGRAPHY = Path(sys.executable).parent / "polygraphy"
LOOSE = ExportRecipe(fp32_tolerance=1.0, fp32_frame_tolerance=1.0, fp16_tolerance=1.0, fp16_frame_tolerance=1.0)
"""Random weights that lost half of themselves give near ties among proposals: parity is not the matter here."""


@functools.cache
def sparse_model() -> FusionModel:
    return prune_two_four(random_model().eval(), "aligned", work=1_000_000).model


@functools.cache
def exported(precision: Precision) -> ExportResult:
    return export_model(
        sparse_model(),
        random_frame(3000, seed=3),
        preset=PRESET,
        precision=precision,
        trt_version="10.3.0",
        recipe=LOOSE,
    )


@functools.cache
def report_of(*, sparse: bool = True) -> SparsityReport:
    result = exported("fp32") if sparse else export_frames.exported("fp32")
    arrays = {**result.inputs, **result.reference}
    return sparsity_report(result.stages, load_contract(PRESET), arrays, rule="aligned", asked="2:4")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stage", ["camera", "lidar", "fusion", "head"])
def test_polygraphy_finds_the_same(stage: str, precision: Precision, tmp_path: Path) -> None:
    """Folded norms, transposed matrices and casts keep the pattern, in the orientation that TensorRT's tools count."""
    if not POLYGRAPHY.exists() and shutil.which("polygraphy") is None:
        pytest.skip("no polygraphy here")
    graph = exported(precision).stages[stage]
    onnx.save(graph, tmp_path / "stage.onnx")
    found = subprocess.run(
        [str(POLYGRAPHY), "inspect", "sparsity", str(tmp_path / "stage.onnx")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0"},
    )
    dense = set(re.findall(r"Found non-sparse tensor: (\S+)", found.stdout + found.stderr))
    checked = int(re.findall(r"Checking the sparsity pattern of (\d+) tensors", found.stdout + found.stderr)[0])
    eligible = {layer.node for layer in report_of().layers if layer.stage == stage and layer.eligible}
    tensors = {node.name: node.input[1] for node in graph.graph.node if node.name in eligible}
    assert tensors.keys() == eligible
    assert checked >= len(set(tensors.values())) > 0
    assert dense.isdisjoint(tensors.values())
    assert all(layer.two_four for layer in report_of().layers if layer.stage == stage and layer.eligible)


def test_the_graph_asks_for_what_the_model_gave() -> None:
    """The rule on models and the rule on graphs agree: nothing that holds the pattern stays unused."""
    layers = report_of().layers
    require_two_four(report_of(), {p: exported(p).stages for p in ("fp32", "fp16")})  # type: ignore[arg-type]
    unused = [layer.node for layer in layers if layer.two_four and not layer.eligible]
    assert unused == []
    chosen = [weight for weight in weights_of(sparse_model(), "aligned") if not weight.obstacle]
    modules = {layer.node.rpartition("/")[0].replace("/", ".") for layer in layers if layer.eligible}
    assert modules == {weight.name.rpartition(".")[0] for weight in chosen}


def test_flops_add_up() -> None:
    """Against torch's counter, but for the embedding of the fixed places, which the export folds."""
    from altermoma.models.batch import FrameBatch
    from altermoma.pruning.flops import count_flops

    model, inputs = sparse_model(), random_frame(3000, seed=3)
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()}
    counted = count_flops(model, FrameBatch(tensors=tensors, size=1))
    folded = sum(layer.padded for layer in counted.layers if "cross_posembed" in layer.name)
    assert sum(layer.flops for layer in report_of().layers) == pytest.approx(counted.total() - folded, rel=1e-3)
    assert 0.5 < report_of().share() < 0.95
    assert report_of().share(two_four=True) == report_of().share()
    assert report_of(sparse=False).share(two_four=True) == 0.0


def test_obstacles() -> None:
    found = {layer.node: layer.obstacle for layer in report_of().layers}
    assert found["img_backbone/conv1/Conv"] == "3 inputs are no multiple of 4"
    assert found["view_transform/dtransform/0/Conv"] == FULL_PRECISION
    assert found["bbox_head/heatmap_head/1/Conv"] == FULL_PRECISION
    assert found["bbox_head/decoder/0/self_posembed/position_embedding_head/3/Conv"] == FULL_PRECISION
    assert found["pts_neck/deblocks/1/0/ConvTranspose"] == TRANSPOSED
    assert found["view_transform/pooling/MatMul"] == ACTIVATIONS
    assert {found[f"pts_middle_encoder/conv_input/0/MatMul{end}"] for end in ("", "_1", "_2", "_3")} == {FULL_PRECISION}


def test_dense_weights_are_named() -> None:
    dense = export_frames.exported("fp32").stages
    with pytest.raises(ExportError, match=r"fusion, fp32: fusion_layer/0/Conv has more than two weights"):
        require_two_four(report_of(sparse=False), {"fp32": dense})
    unasked = report_of(sparse=False)
    require_two_four(SparsityReport(asked="dense", rule="aligned", layers=unasked.layers), {"fp32": dense})


def test_one_weight_too_many_is_named() -> None:
    graphs = dict(exported("fp16").stages)
    broken = onnx.ModelProto()
    broken.CopyFrom(graphs["head"])
    name = next(n.input[1] for n in broken.graph.node if n.name == "bbox_head/decoder/0/ffn/layers/1/MatMul")
    weight = numpy_helper.to_array(initializers(broken)[name]).copy()
    weight[4:8, 7] = 1.0
    set_initializer(broken, name, weight)
    with pytest.raises(ExportError) as caught:
        require_two_four(report_of(), {"fp16": {**graphs, "head": broken}})
    lines = [line for line in str(caught.value).splitlines() if "more than two" in line]
    assert lines == [
        "  head, fp16: bbox_head/decoder/0/ffn/layers/1/MatMul has more than two weights in four input channels"
    ]
    renamed = onnx.ModelProto()
    renamed.CopyFrom(graphs["head"])
    next(n for n in renamed.graph.node if n.name == "bbox_head/decoder/0/ffn/layers/1/MatMul").name = "other"
    with pytest.raises(ExportError, match=r"no node bbox_head/decoder/0/ffn/layers/1/MatMul with constant weights"):
        require_two_four(report_of(), {"fp16": {**graphs, "head": renamed}})


def test_nothing_wide_enough() -> None:
    layer = LayerSparsity(
        stage="head",
        node="n",
        operator="Conv",
        inputs=3,
        outputs=8,
        positions=1,
        flops=1.0,
        two_four=False,
        obstacle="x",
    )
    with pytest.raises(ExportError, match="no product takes 2:4 under the rule 'wide'"):
        require_two_four(SparsityReport(asked="2:4", rule="wide", layers=(layer,)), {"fp16": {}})
    assert SparsityReport(asked="2:4", rule="wide", layers=()).share() == 0.0


def toy(operator: str, weight: np.ndarray, x_shape: list[int], **attributes: object) -> onnx.ModelProto:
    """One product, its weights behind the pair of an int8 graph."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], name="dq"),
        helper.make_node(operator, ["x", "w"], ["y"], name="a/product", **attributes),
    ]
    scaled = [numpy_helper.from_array(weight.astype(np.int8), "q"), numpy_helper.from_array(np.float32(0.1), "scale")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)
    graph = helper.make_graph(nodes, "toy", [x], [out], scaled)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("operator", "shape", "x_shape", "axis", "attributes"),
    [
        ("Conv", (8, 16, 3, 3), [1, 16, 6, 6], 1, {}),
        ("Conv", (8, 16, 1), [1, 16, 6], 1, {}),
        ("MatMul", (16, 8), [5, 16], 0, {}),
        ("Gemm", (16, 8), [5, 16], 0, {}),
        ("Gemm", (8, 16), [5, 16], 1, {"transB": 1}),
    ],
)
def test_orientation_behind_quantisation(
    operator: str, shape: tuple[int, ...], x_shape: list[int], axis: int, attributes: dict[str, object]
) -> None:
    pattern = np.array([1, 0, 0, 1] * 4).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    stage = load_contract(PRESET).stage("fusion")
    plain = type(stage)(name="fusion", meaning="", inputs=(), outputs=())
    for kept, holds in ((np.broadcast_to(pattern, shape), True), (np.ones(shape), False)):
        (layer,) = read_stage(toy(operator, kept, x_shape, **attributes), plain, {}, "aligned")
        assert (layer.inputs, layer.outputs, layer.two_four, layer.obstacle) == (16, 8, holds, "")
    across = toy(operator, np.broadcast_to(pattern, shape), x_shape, **attributes)
    assert holds_two_four(dict(product_weights(across))["a/product"])


def test_grouped_and_transposed() -> None:
    plain = type(load_contract(PRESET).stage("fusion"))(name="fusion", meaning="", inputs=(), outputs=())
    (grouped,) = read_stage(toy("Conv", np.ones((16, 4, 3, 3)), [1, 16, 6, 6], group=4), plain, {}, "pattern")
    assert (grouped.obstacle, grouped.flops) == (GROUPED, 2 * 16 * 4 * 9 * 16)
    (raised,) = read_stage(
        toy("ConvTranspose", np.ones((16, 8, 2, 2)), [1, 16, 3, 3], strides=[2, 2]), plain, {}, "pattern"
    )
    assert (raised.obstacle, raised.inputs, raised.outputs) == (TRANSPOSED, 16, 8)
    assert raised.flops == 2 * 16 * 8 * 4 * 9
