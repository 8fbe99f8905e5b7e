"""`altermoma debug-precision` on bundles: what it names, and engines of a stand-in that it closes in on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cuda_double import FakeCuda
from onnx import numpy_helper
from tensorrt_double import VERSIONS, TensorRtDouble, attach_runtime, built_in
from tiny_bundle import content

from altermoma.cli.app import app
from altermoma.deploy import cuda_driver, tensorrt_api, tensorrt_backend, tensorrt_engines
from altermoma.deploy.bundle import Bundle, write_bundle
from altermoma.deploy.cuda_driver import Gpu, Probe
from altermoma.errors import ExportError, RecipeError, UnsupportedError
from altermoma.export.graph import copy_model
from altermoma.workflow.debug import debug_precision

GPU = Gpu(name="Test GPU", compute_capability="8.7", memory_mib=1, driver="12.6")


def damaged(folder: Path, precision: str, stage: str, weight: str, factor: float) -> Bundle:
    """The toy bundle with another weight in one graph of one precision."""
    good = content()
    graph = good.graphs[precision][stage]
    model = onnx.load_from_string(graph.onnx)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), weight))
    broken = dataclasses.replace(graph, onnx=model.SerializeToString())
    graphs = {**good.graphs, precision: {**good.graphs[precision], stage: broken}}
    return write_bundle(folder, dataclasses.replace(good, graphs=graphs))


def test_a_wrong_weight_in_a_bundle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = damaged(tmp_path / "bundle", "fp16", "fusion", "w_fuse", -1.0)
    found = debug_precision(bundle.folder, "fusion", "fp16")
    assert found.first is not None
    assert found.first.node == "Conv_mixed"
    command = ["debug-precision", str(bundle.folder), "--stage", "fusion", "--engine", "fp16"]
    with pytest.raises(ExportError, match=r"Conv_mixed \(Conv\) is the first layer beyond 5e-02"):
        app([*command, "--out", str(tmp_path / "layers.json")], standalone_mode=False)
    assert "<- first" in capsys.readouterr().out
    layers = json.loads((tmp_path / "layers.json").read_text())
    assert layers["first"]["node"] == "Conv_mixed"
    assert [layer["node"] for layer in layers["layers"]] == ["Concat_both", "Conv_mixed", "Tanh_bev"]
    app(["debug-precision", str(bundle.folder), "--stage", "head"], standalone_mode=False)
    assert "every layer stays within" in capsys.readouterr().out


def test_another_bundle_as_yardstick(bundle: Bundle, tmp_path: Path) -> None:
    other = damaged(tmp_path / "bundle", "fp32", "head", "w_heat", 1.5)
    found = debug_precision(other.folder, "head", "fp32", against=bundle.folder)
    assert found.first is not None
    assert found.first.node == "MatMul_heatmap"
    assert found.first.difference == pytest.approx(0.5, abs=1e-3)
    assert debug_precision(bundle.folder, "head", "fp32", against=bundle.folder).first is None


def test_what_cannot_be_compared(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="is the yardstick itself"):
        debug_precision(bundle.folder, "head", "fp32")
    with pytest.raises(RecipeError, match="no stage 'brain'"):
        debug_precision(bundle.folder, "brain", "fp16")
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=None, reason="no GPU in this test"))
    with pytest.raises(UnsupportedError, match="no GPU in this test"):
        debug_precision(bundle.folder, "head", "fp16", backend="tensorrt")


@pytest.fixture
def engines(trt: TensorRtDouble, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], int]:
    """A machine whose TensorRT gets one weight wrong; gives the number of engines built so far."""
    cuda, parsed, broken = FakeCuda(), list[bytes](), dict[str, str]()
    attach_runtime(trt, cuda)
    built_in(trt, "fp32", "fp16")

    def build(*_: object) -> bytearray:
        model = copy_model(onnx.load_from_string(parsed[-1]))
        for tensor in model.graph.initializer:
            if tensor.name == broken.get(model.graph.name):
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        return bytearray(model.SerializeToString())

    trt.answers[("OnnxParser", "parse")] = lambda _, model: parsed.append(model) or True
    trt.answers[("Builder", "build_serialized_network")] = build
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=GPU))
    for module in (tensorrt_engines, tensorrt_backend, tensorrt_api):
        monkeypatch.setattr(module, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(cuda_driver, "Cuda", lambda: cuda)

    def spoil(stage: str, weight: str) -> int:
        broken[stage] = weight
        return len(parsed)

    return spoil


@pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")
@pytest.mark.parametrize(
    ("stage", "weight", "node"), [("fusion", "w_fuse", "Conv_mixed"), ("camera", "w_depth", "Conv_bins")]
)
def test_an_engine_that_gets_a_layer_wrong(
    engines: Callable[[str, str], int], bundle: Bundle, stage: str, weight: str, node: str
) -> None:
    assert debug_precision(bundle.folder, stage, "fp16", backend="tensorrt").first is None
    before = engines(stage, weight)
    found = debug_precision(bundle.folder, stage, "fp16", backend="tensorrt")
    assert found.backend == "tensorrt"
    assert found.first is not None
    assert found.first.node == node
    assert engines(stage, weight) - before <= 3
