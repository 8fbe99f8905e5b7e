"""Commands of the vehicle where none of the workstation's packages are: no torch, no onnx, no polygraphy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorrt_double import VERSIONS
from toy_widths import write_toy_widths

REPO = Path(__file__).resolve().parents[2]
VEHICLE = f"""
import sys
for name in ("torch", "onnx", "polygraphy", "safetensors", "matplotlib", "nuscenes", "jinja2", "torchvision"):
    sys.modules[name] = None
sys.path.insert(0, {str(REPO / "tests" / "deploy")!r})
from types import SimpleNamespace
from tensorrt_double import TensorRtDouble, attach_runtime, built_in
from cuda_double import FakeCuda
from altermoma.cli.app import app
from altermoma.deploy import tensorrt_backend, tensorrt_engines
from altermoma.deploy.cuda_driver import Gpu, Probe

trt, cuda, parsed = TensorRtDouble("10.3.0"), FakeCuda(), []
built_in(trt, "fp32")
attach_runtime(trt, cuda)
trt.answers[("OnnxParser", "parse")] = lambda _, model: parsed.append(model) or True
trt.answers[("Builder", "build_serialized_network")] = lambda *_: bytearray(parsed[-1])
gpu = Gpu(name="Test GPU", compute_capability="8.7", memory_mib=1, driver="12.6")
tensorrt_engines.probe_gpu = lambda: Probe(gpu=gpu)
tensorrt_backend.Cuda = lambda: cuda
sys.modules["tensorrt"] = trt
app(sys.argv[1:], standalone_mode=False)
"""


pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


def on_the_vehicle(*words: str) -> str:
    """What a command prints there."""
    command = [sys.executable, "-c", VEHICLE, *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_build_needs_nothing_of_the_workstations(copied: Path) -> None:
    shown = on_the_vehicle("build", str(copied), "--engine", "fp32")
    assert "| camera | fp32 |" in shown
    assert "by altermoma, with ONNX Runtime" in shown


def test_measuring_needs_nothing_of_the_workstations(tmp_path: Path) -> None:
    folder = write_toy_widths(tmp_path / "widths")
    words = ["tables", "measure", str(folder), "--engine", "fp32", "--rounds", "2"]
    assert "measured on Test GPU (compute capability 8.7), TensorRT 10.3.0" in on_the_vehicle(*words)
    shown = on_the_vehicle(*words, "--backend", "onnxruntime")
    assert "| camera | " in shown
    assert "ONNX Runtime" in shown
