"""The shipped preset as TensorRT networks in fp16: types as ONNX infers them, islands as the contract names them."""

from __future__ import annotations

import functools

import onnx
import pytest
from describe import describe_graph
from synthetic_inputs import random_inputs
from tensorrt_double import VERSIONS, TensorRtDouble
from tensorrt_network import attach_parser, onnx_types

from altermoma.deploy.manifest import AxisRange, StageRecord
from altermoma.deploy.tensorrt_precision import find_islands, pin_precisions, trace_network
from altermoma.recipe import ExportRecipe

torch = pytest.importorskip("torch")

PRESET = "bevfusion-tiny"
STAGES = ["camera", "view", "lidar", "fusion", "head"]
FLOATS = {"FLOAT", "HALF"}

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


@functools.cache
def half_graphs() -> dict[str, bytes]:
    from altermoma.export.export_model import export_model
    from altermoma.models.presets import build

    torch.manual_seed(0)
    model = build(PRESET).eval()
    inputs = dict(random_inputs(model.config.geometry, points=4000))
    # Untrained scores lie so close together that top-k is a matter of rounding; parity is not what is tested here.
    loose = ExportRecipe(fp32_tolerance=1e3, fp32_frame_tolerance=1e3, fp16_tolerance=1e3, fp16_frame_tolerance=1e3)
    result = export_model(model, inputs, preset=PRESET, precision="fp16", trt_version="8.5.2", recipe=loose)
    return {name: graph.SerializeToString() for name, graph in result.stages.items()}


def stage_record(name: str) -> StageRecord:
    from altermoma.export.contract import load_contract

    axes = {n: AxisRange(min=a.minimum, opt=a.optimum, max=a.maximum) for n, a in load_contract(PRESET).axes.items()}
    graph = describe_graph(half_graphs()[name], name=name, axes=axes)
    return StageRecord(name=name, file="", inputs=graph.inputs, outputs=graph.outputs, axes=graph.axes)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("version", [v for v in VERSIONS if v.startswith("8.")])
def test_every_float_node_is_pinned_to_what_onnx_infers(version: str, stage: str) -> None:
    trt, graph = TensorRtDouble(version), half_graphs()[stage]
    layers = attach_parser(trt)
    network = trt.make("INetworkDefinition")
    trt.OnnxParser(network, None).parse(graph)
    pin_precisions(trt, trace_network(trt, network), stage_record(stage))
    by_output = {tensor.name: layer for layer in layers for tensor in layer.outs}
    types, wrong = onnx_types(graph), []
    for node in onnx.load_from_string(graph).graph.node:
        kinds = [types[name] for name in (*node.output, *node.input) if types.get(name) in FLOATS]
        expected = kinds[0] if kinds and node.op_type not in {"Cast", "Shape"} else None
        layer = by_output[node.output[0]]
        precision = layer._precision.name if hasattr(layer, "_precision") else None
        outputs = {i: kind.name for i, kind in layer.set_types.items()}
        given = {i: types[n] for i, n in enumerate(node.output) if types[n] in FLOATS} if expected else {}
        if (precision, outputs) != (expected, given):
            wrong.append((node.name, expected, precision, given, outputs))
    assert wrong == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("version", [v for v in VERSIONS if v in {"8.5.2.2", "10.3.0", "11.4.0.106"}])
def test_islands_are_those_of_the_contract(version: str, stage: str) -> None:
    from altermoma.export.contract import load_contract

    trt = TensorRtDouble(version)
    attach_parser(trt)
    network = trt.make("INetworkDefinition")
    trt.OnnxParser(network, None).parse(half_graphs()[stage])
    found = find_islands(trace_network(trt, network), stage_record(stage))
    contract = next(item for item in load_contract(PRESET).stages if item.name == stage)
    assert found.inputs == {spec.name for spec in contract.inputs if spec.island}
    assert found.outputs == {spec.name for spec in contract.outputs if spec.island}
    assert not trt.called("ILayer", "precision =")
