"""A build where none of the workstation's packages are: no torch, no onnx, no polygraphy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorrt_double import VERSIONS

REPO = Path(__file__).resolve().parents[2]
BUILD = f"""
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
app(["build", sys.argv[1], "--engine", "fp32"], standalone_mode=False)
"""


@pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")
def test_a_build_needs_nothing_of_the_workstations(copied: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(copied)], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| camera | fp32 |" in done.stdout
    assert "by altermoma, with ONNX Runtime" in done.stdout
