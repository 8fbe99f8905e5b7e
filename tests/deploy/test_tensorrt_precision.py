"""fp32 islands of fp16 graphs: bound on 8.x, left to strong typing from 10 on, and checked in the built engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tensorrt_double import VERSIONS, TensorRtDouble
from tensorrt_network import attach_parser, onnx_types, report_of
from tiny_bundle import stage_graph

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import StageRecord, TensorSpec
from altermoma.deploy.tensorrt_api import version_of
from altermoma.deploy.tensorrt_builder import BuildOptions, build_engine
from altermoma.deploy.tensorrt_inspect import read_layers
from altermoma.deploy.tensorrt_islands import require_islands
from altermoma.deploy.tensorrt_precision import Islands, find_islands, trace_network
from altermoma.errors import EngineError

INSPECTED = [(8, 5), (8, 6), (10, 3), (11, 4)]

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")

GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
toy (float[1,4,8,8] image, float[6,4] rows, float16[6,4] near, int32[5] table)
    => (float[6,2] center, float16[1,4,8,8] features, float16[5,4] picked, int32[6,1] mask)
{
    image16 = Cast<to = 10>(image)
    c = Conv(image16, w_conv, b_conv)
    r = Relu(c)
    r32 = Cast<to = 1>(r)
    sums = Conv(r32, w_sum)
    sums16 = Cast<to = 10>(sums)
    features = Relu(sums16)
    same = Identity(near)
    taken = Gather<axis = 0>(same, table)
    taken_shape = Shape(taken)
    back = Reshape(taken, taken_shape)
    picked = Mul(back, gain)
    scaled = Mul(rows, scale)
    wide = Cast<to = 1>(same)
    moved = Add(scaled, wide)
    best, place = TopK<axis = 1>(moved, one)
    center = Gemm(moved, w_center, b_center)
    mask_bool = Greater(best, level)
    mask = Cast<to = 6>(mask_bool)
}
"""
WEIGHTS = {
    "w_conv": np.ones((4, 4, 1, 1), np.float16),
    "b_conv": np.ones(4, np.float16),
    "w_sum": np.ones((4, 4, 1, 1), np.float32),
    "gain": np.ones((1, 4), np.float16),
    "scale": np.ones((1, 4), np.float32),
    "w_center": np.ones((4, 2), np.float32),
    "b_center": np.ones(2, np.float32),
    "one": np.ones(1, np.int64),
    "level": np.ones((1, 1), np.float32),
}
HALF_LAYERS = {"c", "r", "features", "same", "taken", "back", "picked"}
FLOAT_LAYERS = {"sums", "scaled", "moved", "best", "center", "mask_bool"}


def toy_graph() -> bytes:
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    onnx.checker.check_model(model, full_check=True)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return bytes(model.SerializeToString())


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


TOY = StageRecord(
    name="toy",
    file="",
    inputs=(
        spec("image", "float32", 1, 4, 8, 8),
        spec("rows", "float32", 6, 4),
        spec("near", "float16", 6, 4),
        spec("table", "int32", 5),
    ),
    outputs=(
        spec("center", "float32", 6, 2),
        spec("features", "float16", 1, 4, 8, 8),
        spec("picked", "float16", 5, 4),
        spec("mask", "int32", 6, 1),
    ),
)
KEPT = (
    ("Reformat", "cast", "image:fp32", "image16:fp16"),
    ("CaskConvolution", "conv", "image16:fp16", "features:fp16"),
    ("PointWiseV2", "PWN(scaled, moved)", "rows:fp32 near:fp16", "moved:fp32"),
    ("TopK", "best", "moved:fp32", "best:fp32"),
    ("MatrixMultiply", "center", "moved:fp32", "center:fp32"),
    ("Gather", "picked", "near:fp16", "picked:fp16"),
)


def built(trt: TensorRtDouble, graph: bytes, stage: StageRecord, precision: Any, *told: tuple[str, ...]) -> list[Any]:
    """Builds with an engine report of these layers; gives the layers of the network."""
    layers = attach_parser(trt)
    report = report_of(version_of(trt), *told)  # type: ignore[arg-type]
    trt.answers[("EngineInspector", "get_engine_information")] = lambda *_: report
    trt.answers[("IBuilderConfig", "add_optimization_profile")] = lambda *_: 0
    build_engine(trt, graph, stage, BuildOptions(precision=precision))
    return layers


def pins(layers: list[Any]) -> dict[str, str]:
    """Precision by first output, of the layers that got one."""
    return {layer.outs[0].name: layer._precision.name for layer in layers if hasattr(layer, "_precision")}


@pytest.fixture(params=[v for v in VERSIONS if v.startswith("8.")])
def weak(request: pytest.FixtureRequest) -> TensorRtDouble:
    return TensorRtDouble(request.param)


def test_every_float_layer_of_a_weak_network_gets_the_types_of_its_graph(weak: TensorRtDouble) -> None:
    graph = toy_graph()
    layers = built(weak, graph, TOY, "fp16", *KEPT)
    found = pins(layers)
    nameless = {name: kind for name, kind in found.items() if name.startswith("(Unnamed")}
    assert list(nameless.values()) == ["FLOAT"]
    assert found == {**dict.fromkeys(HALF_LAYERS, "HALF"), **dict.fromkeys(FLOAT_LAYERS, "FLOAT"), **nameless}
    wanted, floats = onnx_types(graph), {"FLOAT", "HALF"}
    for layer in layers:
        if layer.outs[0].name not in found:
            assert not layer.set_types
            continue
        for index, tensor in enumerate(layer.outs):
            kind = wanted.get(tensor.name, "FLOAT")
            assert (layer.set_types[index].name if index in layer.set_types else None) == (
                kind if kind in floats else None
            ), tensor.name
    flags = {flag.name for (flag,) in weak.called("IBuilderConfig", "set_flag")}
    assert {"FP16", "OBEY_PRECISION_CONSTRAINTS"} <= flags


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_weak_fp16_networks_are_touched(trt: TensorRtDouble, precision: str) -> None:
    told = list(KEPT)
    if precision == "fp32":
        told = [("CaskConvolution", "all", "image:fp32 rows:fp32", "center:fp32")]
    layers = built(trt, toy_graph(), TOY, precision, *told)
    touched = trt.called("ILayer", "precision =") + trt.called("ILayer", "set_output_type")
    assert bool(touched) == (version_of(trt) < (10, 0) and precision == "fp16")
    assert bool(pins(layers)) == bool(touched)


def test_stages_of_a_bundle_are_traced_as_onnx_infers(weak: TensorRtDouble, bundle: Bundle) -> None:
    """Graphs of another hand than this test's: fp16 between stages, fp32 within."""
    for name, stage in bundle.stages("fp16").items():
        graph = stage_graph(name, "fp16")
        layers = attach_parser(weak)
        network = weak.make("INetworkDefinition")
        parser = weak.OnnxParser(network, None)
        assert parser.parse(graph)
        traced = trace_network(weak, network)
        types = onnx_types(graph)
        assert len(traced) == len(layers)
        for layer in traced:
            for tensor, kind in layer.writes:
                truth = types[tensor]
                assert kind == (truth if truth in {"FLOAT", "HALF"} else None), tensor
        islands = find_islands(traced, stage)
        floats = {s.name for s in stage.inputs if s.dtype == "float32"}
        assert islands.inputs == floats
        assert islands.outputs == {s.name for s in stage.outputs if s.dtype == "float32"}


def test_types_that_end_elsewhere_than_the_contract_are_an_error(weak: TensorRtDouble) -> None:
    outputs = (spec("center", "float16", 6, 2), *TOY.outputs[1:])
    other = StageRecord(name="toy", file="", inputs=TOY.inputs, outputs=outputs)
    with pytest.raises(EngineError, match=r"toy: TensorRT 8\.\d.* computes center in float32"):
        built(weak, toy_graph(), other, "fp16", *KEPT)


def test_islands_of_the_graph(trt: TensorRtDouble) -> None:
    attach_parser(trt)
    network = trt.make("INetworkDefinition")
    trt.OnnxParser(network, None).parse(toy_graph())
    found = find_islands(trace_network(trt, network), TOY)
    assert found == Islands(inputs=frozenset({"rows"}), outputs=frozenset({"center"}))


ROUNDED = [
    (
        [("Reformat", "Reformatting CopyNode for Input Tensor 0 to scaled", "rows:fp32", "copy:fp16")],
        "layer Reformatting CopyNode for Input Tensor 0 to scaled (Reformat) has copy in fp16 (from rows)",
    ),
    (
        [("PointWiseV2", "scaled", "rows:fp32", "moved:fp32"), ("MatrixMultiply", "mm", "moved:fp16", "center:fp32")],
        "layer mm (MatrixMultiply) has moved in fp16 (from center)",
    ),
    (
        [("Reformat", "widen", "half:fp16", "center:fp32"), ("PointWiseV2", "p", "rows:fp32", "q:fp32")],
        "layer widen (Reformat) has half in fp16 (from center)",
    ),
    (
        [
            ("NoOp", "copy", "rows:fp32", "again:fp32"),
            ("Shuffle", "move", "again:fp32", "rounded:fp16"),
            ("Myelin", "{ForeignNode[a...b]}", "rounded:fp16", "center:fp32"),
        ],
        "layer move (Shuffle) has rounded in fp16 (from rows)",
    ),
    (
        [
            ("Myelin", "{ForeignNode[conv...b]}", "rows:fp32", "out:fp16"),
            ("Reformat", "output copy", "out:fp16", "center:fp32"),
        ],
        "layer output copy (Reformat) has out in fp16 (from center)",
    ),
]


@pytest.mark.parametrize(("told", "said"), ROUNDED)
def test_an_engine_that_rounds_an_island_names_the_layer(
    trt: TensorRtDouble, told: list[tuple[str, ...]], said: str
) -> None:
    half = ("CaskConvolution", "conv", "image16:fp16", "features:fp16")
    with pytest.raises(EngineError) as caught:
        built(trt, toy_graph(), TOY, "fp16", half, *told)
    assert said in caught.value.found
    assert "stage toy" in caught.value.found


@pytest.mark.parametrize("version", INSPECTED)
def test_what_the_report_does_not_show_is_said(version: tuple[int, int]) -> None:
    islands = Islands(inputs=frozenset({"rows"}), outputs=frozenset({"center"}))
    kept = read_layers(report_of(version, *KEPT), [])
    assert require_islands(TOY, islands, kept) == ()
    blind = read_layers(report_of(version, *KEPT[:2], ("Myelin", "{ForeignNode[a]}", "rows:fp32", "x:fp16")), [])
    assert require_islands(TOY, islands, blind) == ("center",)


def test_a_product_may_give_halves_but_not_take_them() -> None:
    """Behind the first product an island has ended: its cast may be fused into the kernel."""
    islands = Islands(inputs=frozenset({"rows"}))
    fused = read_layers(report_of((8, 6), ("CaskGemmConvolution", "conv", "rows:fp32", "y:fp16")), [])
    assert require_islands(TOY, islands, fused) == ()
    taken = read_layers(report_of((8, 6), ("CaskGemmConvolution", "conv", "rows:fp16", "y:fp32")), [])
    with pytest.raises(EngineError, match=r"layer conv .* has rows in fp16"):
        require_islands(TOY, islands, taken)


QUANTISED = """
<ir_version: 8, opset_import: ["" : 17]>
quantised (float[1,4,8,8] image, float[6,4] rows) => (float16[1,4,8,8] features, float[6,4] moved)
{
    q = QuantizeLinear(image, s, z)
    d = DequantizeLinear(q, s, z)
    w = DequantizeLinear(w_int8, s, z)
    c = Conv(d, w)
    c16 = Cast<to = 10>(c)
    r = Relu(c16)
    features = Mul(r, gain)
    moved = Mul(rows, scale)
}
"""


def quantised_graph() -> bytes:
    weights = {
        "s": np.asarray(0.1, np.float32),
        "z": np.asarray(0, np.int8),
        "w_int8": np.ones((4, 4, 1, 1), np.int8),
        "gain": np.ones((1, 1, 1, 1), np.float16),
        "scale": np.ones((1, 4), np.float32),
    }
    model = onnx.parser.parse_model(QUANTISED)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


QUANTISED_STAGE = StageRecord(
    name="quantised",
    file="",
    inputs=TOY.inputs[:2],
    outputs=(spec("features", "float16", 1, 4, 8, 8), spec("moved", "float32", 6, 4)),
)
QUANTISED_KEPT = (
    ("Reformat", "quantise", "image:fp32", "q:int8"),
    ("CaskConvolution", "conv", "q:int8", "features:fp16"),
    ("PointWiseV2", "moved", "rows:fp32", "moved:fp32"),
)


def test_quantised_layers_stay_free_and_the_rest_is_bound(trt: TensorRtDouble) -> None:
    """A picture that is quantised at once is no island; coordinates beside it are."""
    found = pins(built(trt, quantised_graph(), QUANTISED_STAGE, "int8", *QUANTISED_KEPT))
    weak = version_of(trt) < (10, 0)
    assert found == ({"r": "HALF", "features": "HALF", "moved": "FLOAT"} if weak else {})
    rounded = ("Reformat", "narrow", "rows:fp32", "less:int8")
    with pytest.raises(EngineError, match=r"layer narrow .* has less in int8 \(from rows\)"):
        built(trt, quantised_graph(), QUANTISED_STAGE, "int8", *QUANTISED_KEPT, rounded)


SEGMENTS = """
<ir_version: 8, opset_import: ["" : 17]>
segments (float[1,4,8,8] image, float[6,4] rows) => (float16[1,4,8,8] features, float[6,4] moved)
{
    q = QuantizeLinear(image, s, z)
    d = DequantizeLinear(q, s, z)
    w = DequantizeLinear(w_int8, s, z)
    one = Conv(d, w)
    two = Conv(d, w)
    both = Concat<axis = 3>(one, two)
    sum = Add(both, bias)
    r = Relu(sum)
    q2 = QuantizeLinear(r, s, z)
    d2 = DequantizeLinear(q2, s, z)
    three = Conv(d2, wide)
    twice = Add(three, three)
    f16 = Cast<to = 10>(twice)
    features = Relu(f16)
    moved = Mul(rows, scale)
}
"""


def test_what_lies_between_a_product_and_the_next_pair_stays_free(trt: TensorRtDouble) -> None:
    """Not what only follows a product: `twice` is rounded to half precision, never to int8."""
    weights = {
        "s": np.asarray(0.1, np.float32),
        "z": np.asarray(0, np.int8),
        "w_int8": np.ones((4, 4, 1, 1), np.int8),
        "wide": np.ones((4, 4, 1, 9), np.float32),
        "bias": np.ones((1, 4, 1, 1), np.float32),
        "scale": np.ones((1, 4), np.float32),
    }
    model = onnx.parser.parse_model(SEGMENTS)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(model, full_check=True)
    found = pins(built(trt, model.SerializeToString(), QUANTISED_STAGE, "int8", *QUANTISED_KEPT))
    weak = version_of(trt) < (10, 0)
    assert found == ({"twice": "FLOAT", "features": "HALF", "moved": "FLOAT"} if weak else {})


def test_a_stage_of_an_int8_bundle_that_holds_nothing_to_quantise(trt: TensorRtDouble) -> None:
    built(trt, toy_graph(), TOY, "int8", *KEPT)
    with pytest.raises(EngineError, match="asked for in int8 but computes in"):
        built(trt, quantised_graph(), QUANTISED_STAGE, "int8", *KEPT)
