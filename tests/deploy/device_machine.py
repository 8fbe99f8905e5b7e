"""A machine with a GPU and some TensorRT, as far as the deploy code can see, with engines of the toy bundle built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cuda_double import FakeCuda
from tensorrt_double import TensorRtDouble, attach_runtime, built_in

from altermoma.deploy import device_kernels, tensorrt_backend, tensorrt_engines
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import Gpu, Probe
from altermoma.deploy.tensorrt_builder import BuildOptions
from altermoma.deploy.tensorrt_engines import engines_here

GPU = Gpu(name="Test GPU", compute_capability="8.7", memory_mib=1, driver="12.6")


def become_gpu_machine(trt: TensorRtDouble, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deploy code finds a GPU, this TensorRT and this CUDA."""
    built_in(trt, "fp32")
    attach_runtime(trt, cuda)
    parsed: list[bytes] = []
    trt.answers[("OnnxParser", "parse")] = lambda _, model: parsed.append(model) or True
    trt.answers[("Builder", "build_serialized_network")] = lambda *_: bytearray(parsed[-1])
    monkeypatch.setattr(device_kernels, "compile_kernels", lambda name, *_: name.encode())
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=GPU))
    for module in (tensorrt_engines, tensorrt_backend):
        monkeypatch.setattr(module, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_backend, "Cuda", lambda: cuda)


def built(folder: Path, **options: Any) -> Bundle:
    """The bundle with its engines."""
    options = {"precision": "fp32", **options}
    return engines_here(Bundle.open(folder), BuildOptions(**options), build="require")
