"""What the engine inspector of each version says about the layers that were built."""

from __future__ import annotations

import json

import pytest
from tensorrt_double import inspector_report

from altermoma.deploy.tensorrt_inspect import UNNAMED, read_layers, require_precision
from altermoma.errors import EngineError


@pytest.mark.parametrize(
    ("asked", "found", "good"),
    [
        ("fp32", ("fp32",), True),
        ("fp32", ("fp32", "fp16"), False),
        ("fp16", ("fp32", "fp16"), True),
        ("fp16", ("fp32",), False),
        ("int8", ("fp16", "fp32"), False),
        ("int8", ("int8", "fp16"), True),
        ("int8", ("fp8", "fp16"), True),
        ("fp32", ("fp32", "fp8"), False),
        ("fp16", (), False),
    ],
)
@pytest.mark.parametrize("version", [(8, 6), (10, 3), (11, 4)])
def test_engine_of_another_precision_is_an_error(
    asked: str, found: tuple[str, ...], good: bool, version: tuple[int, int]
) -> None:
    layers = read_layers(inspector_report(version, *found), [])
    if good:
        require_precision("camera", asked, layers)
        return
    with pytest.raises(EngineError, match="camera"):
        require_precision("camera", asked, layers)


@pytest.mark.parametrize(
    ("numbers", "found", "good"),
    [
        ("int8", ("int8", "fp16"), True),
        ("int8", ("fp8", "fp16"), False),
        ("fp8", ("fp8", "fp16"), True),
        ("fp8", ("int8", "fp16"), False),
        ("fp8", ("int8", "fp8"), True),
        ("fp8", ("fp16",), False),
    ],
)
@pytest.mark.parametrize("version", [(10, 3), (11, 4)])
def test_a_stage_is_held_to_the_numbers_that_its_quantisers_round_to(
    numbers: str, found: tuple[str, ...], good: bool, version: tuple[int, int]
) -> None:
    layers = read_layers(inspector_report(version, *found), [])
    if good:
        require_precision("camera", "int8", layers, numbers)
        return
    with pytest.raises(EngineError, match=f"camera was asked for in {numbers} but computes in") as caught:
        require_precision("camera", "int8", layers, numbers)
    assert caught.value.expected == f"{numbers} layers"


def test_inspector_of_names_only_cannot_be_verified() -> None:
    with pytest.raises(EngineError, match="does not tell"):
        require_precision("camera", "fp32", read_layers(json.dumps({"Layers": ["conv1", "conv2"]}), []))
    with pytest.raises(EngineError, match="cannot be read"):
        read_layers("no json", [])


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel == 4 and column stride % 32 == 0", "fp16"),
        ("Eight channel FP16 format (kHWC8) where C is padded to a multiple of 8", "fp16"),
        ("Thirty-two wide channel vectorized row major INT8 format (kCDHW32) with 3 spatial dimensions", "int8"),
        ("Row major Int8 format where column stride % 64 == 0", "int8"),
        ("Row major linear Int32", "int32"),
        ("Row major linear BOOL", "bool"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Row major linear Int64 format", "int64"),
        ("Row major linear FP8 format", "fp8"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Int8", "int8"),
        ("BFloat16", "bf16"),
        ("Row major linear UInt8 format", None),
        ("Unknown format", None),
        ("N/A", None),
        ("None", None),
    ],
)
def test_how_versions_call_their_types(text: str, precision: str | None) -> None:
    """Texts of libnvinfer 8.6 and of trt-engine-explorer's list for 8.x to 10.16 (trex/activations.py)."""
    tensor = {"Name": "t", "Dimensions": [1], "Format/Datatype": text}
    report = {"Layers": [{"Name": "a", "LayerType": "kgen", "Inputs": [tensor], "Outputs": []}], "Bindings": []}
    assert read_layers(json.dumps(report), []).counts == ({precision: 1} if precision else {})


def test_control_characters_in_the_report_of_8_6() -> None:
    """Its metadata has a record separator between fused nodes: NVIDIA/TensorRT#2779."""
    report = json.loads(inspector_report((8, 6), "fp16"))
    report["Layers"][0]["Metadata"] = "[ONNX Layer: conv]\x1e[ONNX Layer: relu]"
    raw = json.dumps(report).replace("\\u001e", "\x1e")
    assert "\x1e" in raw
    assert read_layers(raw, []).counts == {"fp16": 1}


def test_sparse_layers_are_read_from_the_log() -> None:
    log = [
        "INFO: (Sparsity) Layers eligible for sparse math: conv1, conv2",
        "INFO: (Sparsity) TRT inference plan picked sparse implementation for layers: conv2",
    ]
    layers = read_layers(inspector_report((10, 3), "fp16"), log)
    assert layers.sparse_eligible == ("conv1", "conv2")
    assert layers.sparse_picked == ("conv2",)


def test_sparse_layers_are_counted_where_newer_builders_only_count() -> None:
    log = [
        "[V] (Sparsity) Found 40 layer(s) eligible to use sparse tactics",
        "[V] (Sparsity) Chose 40 layer(s) using sparse tactics",
        "[V] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: conv1, conv2, conv3",
        "[V] (Sparsity) Chose 2 layer(s) using sparse tactics",
    ]
    layers = read_layers(inspector_report((10, 3), "fp16"), log)
    assert layers.sparse_eligible == ("conv1", "conv2", "conv3")
    assert layers.sparse_picked == (UNNAMED, UNNAMED)
    none = read_layers(
        inspector_report((10, 3), "fp16"), [*log[:3], "[V] (Sparsity) Chose 0 layer(s) using sparse tactics"]
    )
    assert none.sparse_picked == ()


@pytest.mark.parametrize("version", [(8, 6), (10, 3), (11, 4)])
def test_sparse_kernels_by_name_where_the_log_is_silent(version: tuple[int, int]) -> None:
    report = json.loads(inspector_report(version, "fp16", "fp16"))
    report["Layers"][1]["TacticName"] = "sm80_xmma_fprop_sparse_conv_interleaved_f16f16_f16"
    report["Layers"][0]["TacticName"] = "sm80_xmma_fprop_implicit_gemm_f16f16"
    assert read_layers(json.dumps(report), []).sparse_picked == ("conv1",)
    log = ["INFO: (Sparsity) TRT inference plan picked sparse implementation for layers: layer4.conv2"]
    assert read_layers(json.dumps(report), log).sparse_picked == ("layer4.conv2",)
