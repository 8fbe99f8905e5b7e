"""The vendor's tools in the GPU check: engines beside ONNX Runtime by polygraphy, and the README's commands."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gpu_machine import GPU, Machine
from onnx import numpy_helper
from tensorrt_double import VERSIONS

from altermoma.deploy import gpu_check, gpu_tools
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.readme import commands_of

DOUBLE = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


def steps(machine: Machine, folder: Path) -> dict[str, Any]:
    variant = gpu_check.Variant(bundle=folder, precision="fp32", folder=machine.out / "dense-fp32")
    gpu_check.check_variant(variant, timing_cache=machine.out / "timing.cache", device=str(GPU))
    return dict(variant.read()["steps"])


@DOUBLE
def test_an_engine_that_leaves_onnx_runtime_is_found_by_the_comparator(machine: Machine) -> None:
    """Also one that its own reference has been bent to, which every step that holds it to the bundle passes."""

    def bent() -> bytearray:
        model = onnx.load_from_string(machine.parsed[-1])
        weight = next(t for t in model.graph.initializer if t.name == "w_fuse")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), "w_fuse"))
        return bytearray(model.SerializeToString())

    folder = machine.bundle("dense")
    machine.on_stage("fusion", bent)
    found = steps(machine, folder)
    assert found["cross"]["status"] == "failed"
    assert found["cross"]["error"].startswith("engines and ONNX Runtime differ: fusion.bev by")
    assert found["cross"]["judges"] == ["polygraphy"]
    assert {check["stage"] for check in found["cross"]["cross"] if not check["passed"]} == {"fusion"}
    feed, *built = machine.tools
    assert feed == ["reference/feed.py"]
    assert [words[2:5] for words in built] == [
        ["run", f"stages/fp32/{stage}.onnx", "--onnxrt"] for stage in gpu_tools.VENDOR_STAGES
    ]
    assert all("--trt" in words and "--strongly-typed" not in words[:2] for words in built)


@DOUBLE
def test_large_bundles_are_left_out(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(machine.bundle("dense"))
    assert gpu_tools.left_out(bundle, "fp32", "onnxruntime") == ""
    assert "no_such_tool is not installed" in gpu_tools.left_out(bundle, "fp32", "no_such_tool")
    monkeypatch.setattr(gpu_tools, "SMALL_BYTES", 10)
    assert "only for small bundles" in gpu_tools.left_out(bundle, "fp32", "onnxruntime")


@pytest.mark.slow
def test_commands_run_as_they_stand_and_say_what_went_wrong(copied: Path) -> None:
    """Without TensorRT's part, which polygraphy itself runs on ONNX Runtime here."""
    bundle = Bundle.open(copied)
    assert gpu_tools.run_tool(["reference/feed.py"], copied) == ""
    command = commands_of(bundle.manifest, bundle.reference(), "fp32", bundle.stages("fp32")["fusion"]).polygraphy()
    words = ["-c", gpu_tools._POLYGRAPHY, *command.split()[1:]]
    assert gpu_tools.run_tool(words, copied) == ""
    assert Bundle.open(copied).manifest == bundle.manifest, "what the tools leave is no part of the bundle"
    shutil.copy(copied / "stages/fp32/camera.onnx", copied / "stages/fp32/fusion.onnx")
    assert gpu_tools.run_tool(words, copied).startswith("ended with code 1: ")
