"""A GPU machine of stand-ins, on which scripts/gpu_check.py runs whole."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import typer
from kernels_on_cpu import CpuModule
from onnx import TensorProto
from script_module import load_script
from tensorrt_double import FakeCuda, TensorRtDouble, attach_runtime, inspector_report
from tiny_bundle import content
from typer.testing import CliRunner

from altermoma.deploy import device_kernels, gpu_check, gpu_frames, gpu_tools, tensorrt_backend, tensorrt_engines
from altermoma.deploy.bundle import write_bundle
from altermoma.deploy.cuda_driver import Gpu, Probe

GPU = Gpu(name="Test GPU", compute_capability="8.7", memory_mib=1, driver="12.6")
Parsed = list[bytes]


class Crash(BaseException):
    """What ends a process."""


AFTER = ("frame", "onnxruntime", "kernels", "frame, host", "frame, device", "cross", "vendor")


class Machine:
    """A GPU machine as far as the code can see; the script's child processes are calls."""

    def __init__(self, trt: TensorRtDouble, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.trt, self.folder, self.script = trt, folder, load_script("gpu_check")
        self.parsed: Parsed = []
        cuda = self.cuda = FakeCuda(CpuModule)
        attach_runtime(trt, cuda)
        trt.answers |= {
            ("OnnxParser", "parse"): lambda _, model: self.parsed.append(model) or True,
            ("Builder", "build_serialized_network"): lambda *_: bytearray(self.parsed[-1]),
            ("EngineInspector", "get_engine_information"): lambda *_: inspector_report((10, 3), self.precision()),
            ("IBuilderConfig", "add_optimization_profile"): lambda *_: 0,
            ("ICudaEngine", "device_memory_size_v2"): lambda _: 5_000_000,
        }
        monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=GPU))
        monkeypatch.setattr(tensorrt_backend, "Cuda", lambda: cuda)
        monkeypatch.setattr(device_kernels, "compile_kernels", lambda name, *_: name.encode())
        monkeypatch.setattr(gpu_frames, "KERNEL_RUNS", 1)
        monkeypatch.setattr(gpu_frames, "KERNEL_WARMUP", 1)
        self.tools: list[list[str]] = []
        monkeypatch.setattr(gpu_tools, "run_tool", lambda words, _: self.tools.append(words) or "")
        for module in (tensorrt_backend, tensorrt_engines, gpu_check, self.script):
            monkeypatch.setattr(module, "import_tensorrt", lambda: trt)

    @property
    def stage(self) -> str:
        """Of the graph parsed last."""
        return str(onnx.load_from_string(self.parsed[-1]).graph.name)

    def precision(self) -> str:
        graph = onnx.load_from_string(self.parsed[-1]).graph
        types = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        return "fp16" if TensorProto.FLOAT16 in types else "fp32"

    @property
    def out(self) -> Path:
        return self.folder / "result"

    def bundle(
        self, name: str, *, amount: float = 0.0, precisions: tuple[str, ...] = ("fp32",), sparsity: str = "dense"
    ) -> Path:
        metrics = {"amount": amount, "flops": {"total": 100.0 * (1 - amount)}}
        recipe = {"model": "toy", "engine": {"sparsity": sparsity}}
        made = dataclasses.replace(content(precisions), metrics=metrics, recipe=recipe)
        return write_bundle(self.folder / "bundles" / name, made).folder

    def builds(self) -> int:
        return len(self.trt.called("Builder", "build_serialized_network"))

    def run(self, *options: str, seconds: float = 600.0, retry: bool = False) -> dict[str, Any]:
        """Runs the plan over all bundles; `result.json`."""
        variants, broken = self.script.group(self.script.find_bundles([self.folder / "bundles"]), self.out)
        plan = self.script.Plan(
            out=self.out,
            variants=variants,
            broken=broken,
            deadline=time.monotonic() + seconds,
            step_s=100.0,
            bench_s=0.05,
            threads=1,
        )
        for variant in plan.every if retry else []:
            gpu_check.forget(variant, failures=True)
        faults = self.script.run_plan(plan, self.child)
        result: dict[str, Any] = json.loads((self.out / "result.json").read_text())
        assert result["failures"] == faults
        return result

    def child(self, arguments: list[str], log: Path, timeout: float) -> str:
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(self.script.main)
        assert timeout > 0
        try:
            done = CliRunner().invoke(app, arguments)
        except Crash:
            return "its process crashed: SIGSEGV"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(repr(done.exception))
        return f"its process ended with code {done.exit_code}" if done.exit_code else ""

    def on_stage(self, stage: str, answer: Callable[[], Any]) -> None:
        """Another outcome of the build of one stage."""
        build = self.trt.answers[("Builder", "build_serialized_network")]
        self.trt.answers[("Builder", "build_serialized_network")] = lambda *arguments: (
            answer() if self.stage == stage else build(*arguments)
        )
