"""The check of a GPU machine on the stand-in of TensorRT: what passes, and what becomes of every kind of failure."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gpu_machine import AFTER, Crash, Machine
from kernels_on_cpu import CpuModule
from onnx import numpy_helper
from script_module import SCRIPTS
from tensorrt_double import VERSIONS
from tiny_bundle import content

from altermoma.deploy import gpu_check, tensorrt_backend, tensorrt_engines
from altermoma.deploy.bundle import Bundle, write_bundle
from altermoma.deploy.cuda_driver import GpuLostError, Probe
from altermoma.deploy.manifest import STAGES
from altermoma.deploy.telemetry import summarise
from altermoma.errors import EngineError

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


def test_everything_passes_and_is_not_done_again(machine: Machine) -> None:
    dense = machine.bundle("dense", precisions=("fp32", "fp16"))
    machine.bundle("pruned", amount=0.5, precisions=("fp32", "fp16"))
    result = machine.run()
    assert result["failures"] == []
    assert set(result["variants"]) == {"dense-fp32", "dense-fp16", "pruned-fp32", "pruned-fp16"}
    for name, check in result["variants"].items():
        steps = check["steps"]
        assert check["status"] == "passed"
        wanted = [*(f"build {s}" for s in STAGES), *(f"run {s}" for s in STAGES), *AFTER]
        assert list(steps) == wanted
        assert {step["status"] for step in steps.values()} == {"passed"}
        assert steps["build lidar"]["layers"] == {name[-4:]: 1}
        assert steps["run lidar"]["memory_bytes"]["scratch"] == 5_000_000
        assert 0 < steps["run lidar"]["execution_ms"]["p50"] <= steps["run lidar"]["execution_ms"]["max"]
        assert (machine.out / name / "lidar.layers.json").is_file()
    assert steps["frame"]["matched"] == steps["frame"]["boxes"] > 0
    assert Bundle.open(dense).manifest.engines.state == "built"
    bench = result["benchmarks"]["toy"]
    assert set(bench["variants"]) == set(result["variants"])
    page = (machine.out / "result.md").read_text()
    assert "Everything passed" in page
    assert "| dense-fp32 | graphs, device | " in page
    assert "3 of 3 lines" in page
    assert "| dense-fp32 | tables | " in page
    assert "dense-fp16: with graphs, prepared on the device" in page
    ratio = next(line for line in page.splitlines() if line.startswith("| pruned-fp16 | ") and "0.500" in line)
    times = {name: bench["variants"][name]["latency_ms"]["frame"]["p50"] for name in ("dense-fp16", "pruned-fp16")}
    shown = 1 - times["pruned-fp16"] / times["dense-fp16"]
    assert f"{shown / 0.5:.2f}" in ratio
    assert "| paper, AlterMOMA 50 % | 0.705 | 0.433 | 0.52 |" in page
    before = machine.builds(), (machine.out / "bench-toy.json").stat().st_mtime_ns
    assert machine.run()["failures"] == []
    assert (machine.builds(), (machine.out / "bench-toy.json").stat().st_mtime_ns) == before


def test_a_build_that_fails_costs_its_stage_alone(machine: Machine) -> None:
    def fail() -> None:
        logger = machine.trt.called("Builder", "__init__")[-1][0]
        logger.log(machine.trt.ILogger.Severity.ERROR, "no tactic for Gather_7")

    machine.bundle("dense")
    build = machine.trt.answers[("Builder", "build_serialized_network")]
    machine.on_stage("lidar", fail)
    result = machine.run()
    steps = result["variants"]["dense-fp32"]["steps"]
    assert {name for name, step in steps.items() if step["status"] == "passed"} == {
        *(f"{what} {stage}" for what in ("build", "run") for stage in STAGES if stage != "lidar"),
        "onnxruntime",
        "kernels",
        "vendor",
    }
    assert "no tactic for Gather_7" in steps["build lidar"]["error"]
    assert "no tactic for Gather_7" in (machine.out / "dense-fp32" / "lidar.log").read_text()
    assert steps["run lidar"]["status"] == steps["frame"]["status"] == "skipped"
    assert "nothing to time" in result["benchmarks"]["toy"]["error"]
    assert len(result["failures"]) == 7
    count = machine.builds()
    machine.run()
    assert machine.builds() == count, "a failure is an outcome too"
    machine.trt.answers[("Builder", "build_serialized_network")] = build
    assert machine.run(retry=True)["failures"] == []
    assert machine.builds() == count + 1


def test_outputs_beyond_the_tolerance_are_timed_and_marked(machine: Machine) -> None:
    def bent() -> bytearray:
        model = onnx.load_from_string(machine.parsed[-1])
        weight = next(t for t in model.graph.initializer if t.name == "w_fuse")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), "w_fuse"))
        return bytearray(model.SerializeToString())

    machine.bundle("dense")
    machine.on_stage("fusion", bent)
    result = machine.run()
    steps = result["variants"]["dense-fp32"]["steps"]
    assert steps["run fusion"]["status"] == "failed"
    assert "fusion.bev off by" in steps["run fusion"]["error"]
    (check,) = steps["run fusion"]["parity"]
    assert 1e-4 < check["difference"] < 2e-2
    assert steps["run fusion"]["execution_ms"]["p50"] > 0
    assert steps["run head"]["status"] == "passed", "each stage is fed with the reference's inputs"
    assert steps["onnxruntime"]["status"] == "passed", "the bundle is not to blame"
    assert "Not everything is right in dense-fp32" in (machine.out / "result.md").read_text()


def test_not_a_number_is_a_failure_that_json_can_hold(machine: Machine) -> None:
    machine.bundle("dense")
    execute = machine.trt.answers[("IExecutionContext", "execute_async_v3")]
    cuda = tensorrt_backend.Cuda()

    def poisoned(this: Any, stream: int) -> bool:
        done = bool(execute(this, stream))
        held = this.state.addresses
        if "camera_bev" in held and "bev" not in held:
            place = held["camera_bev"], 4

            def poison() -> None:
                cuda.bytes_at(*place).view(np.float32)[0] = np.nan

            cuda.queue(stream, "poison", poison, reads=[], writes=[place])
        return done

    machine.trt.answers[("IExecutionContext", "execute_async_v3")] = poisoned
    steps = machine.run()["variants"]["dense-fp32"]["steps"]
    assert steps["run view"]["status"] == "failed"
    assert steps["run view"]["parity"][0]["difference"] == gpu_check.NOT_FINITE


def test_a_crash_costs_one_step(machine: Machine) -> None:
    def crash() -> None:
        raise Crash

    machine.bundle("dense")
    machine.on_stage("view", crash)
    steps = machine.run()["variants"]["dense-fp32"]["steps"]
    assert steps["build view"] == {"status": "failed", "error": "its process crashed: SIGSEGV"}
    assert steps["run head"]["status"] == "passed"
    assert steps["frame"]["status"] == "skipped"


def test_a_lost_gpu_costs_one_step(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal address nothing works in a process: the step failed, and the next process does the rest."""

    def lose(*_: object) -> None:
        raise GpuLostError("the CUDA driver call cuLaunchKernel gave error 700: the GPU is lost to this process")

    machine.bundle("dense")
    monkeypatch.setattr(gpu_check, "check_kernels", lose)
    result = machine.run()
    steps = result["variants"]["dense-fp32"]["steps"]
    assert "error 700" in steps["kernels"]["error"]
    assert {name for name, step in steps.items() if step["status"] != "passed"} == {"kernels"}
    assert len(result["failures"]) == 1


def test_kernels_that_differ_from_the_host_are_named(machine: Machine) -> None:
    """Frames prepared by them are not trusted; the benchmark takes the way that was found to be right."""

    def wrong(image: bytes) -> Any:
        module = CpuModule(image)
        found = module.function
        name = "mean_points"

        def function(wanted: str) -> Any:
            kernel = found(wanted)
            if wanted != name:
                return kernel
            broken = copy.copy(kernel)
            broken._function = lambda threads, seed, *a: (kernel._function(threads, seed, *a), scale(a[-1].value))
            return broken

        module.function = function  # type: ignore[method-assign]
        return module

    def scale(address: int) -> None:
        machine.cuda.bytes_at(address, 400).view(np.float32)[:] *= np.float32(50.0)

    machine.bundle("dense")
    machine.cuda._kernels = wrong
    result = machine.run()
    steps = result["variants"]["dense-fp32"]["steps"]
    assert steps["kernels"]["status"] == "failed"
    assert set(steps["kernels"]["differing"]) > {"images", "depth", "voxels", "out_table"}
    assert [name for name, count in steps["kernels"]["differing"].items() if count] == ["voxels"]
    assert steps["frame, host"]["captures"] == {"camera": 1, "lidar": 1, "head": 1}
    assert steps["frame, host"]["from_stages"] < 1e-5
    assert steps["frame, device"]["status"] == "failed"
    assert steps["frame, device"]["from_stages"] > 1e-3
    assert result["benchmarks"]["toy"]["ways"] == {"dense-fp32": "host"}


def test_only_a_step_that_hangs_by_itself_has_failed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was ended after many steps goes on; one that gets nowhere costs its step."""
    machine.bundle("dense")
    machine.run()
    file = machine.out / "dense-fp32" / "check.json"
    whole = json.loads(file.read_text()) | {"status": "unfinished"}
    left = list(whole["steps"])

    def one_step_a_process(*_: object) -> str:
        steps = json.loads(file.read_text())["steps"]
        if len(steps) < 3:
            steps |= {left[len(steps)]: {"status": "passed"}, left[len(steps) + 1]: {"status": "started"}}
        elif left[3] not in steps:
            steps[left[3]] = {"status": "started"}
        else:
            return ""
        file.write_text(json.dumps(whole | {"steps": steps}))
        return f"{machine.script.TOO_LONG} 480 s"

    file.write_text(json.dumps(whole | {"steps": {}}))
    monkeypatch.setattr(machine, "child", one_step_a_process)
    steps = machine.run()["variants"]["dense-fp32"]["steps"]
    assert [step["status"] for step in steps.values()] == ["passed", "passed", "passed", "failed"]
    assert steps[left[3]]["error"] == "it was ended after 480 s"


def test_what_was_interrupted_is_done_again(machine: Machine) -> None:
    machine.bundle("dense")
    machine.run()
    file = machine.out / "dense-fp32" / "check.json"
    record = json.loads(file.read_text())
    record["steps"]["frame"] = {"status": "started"}
    file.write_text(json.dumps(record))
    result = machine.run()
    assert result["failures"] == []
    assert result["variants"]["dense-fp32"]["steps"]["frame"]["matched"] > 0


def test_the_time_is_over(machine: Machine) -> None:
    machine.bundle("dense")
    result = machine.run(seconds=1.0)
    assert machine.builds() == 0
    assert [line.partition(":")[0] for line in result["failures"]] == ["dense-fp32", "benchmark of toy"]
    assert machine.run()["failures"] == []


def test_damaged_bundles_are_named_and_the_others_checked(machine: Machine) -> None:
    machine.bundle("good")
    graph = machine.bundle("altered") / "stages" / "fp32" / "head.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    (machine.bundle("unreadable") / "manifest.json").write_text("{")
    result = machine.run()
    assert result["variants"]["good-fp32"]["status"] == "passed"
    assert "not valid JSON" in result["variants"]["unreadable"]["error"]
    assert "truncated or grown: stages/fp32/head.onnx" in result["variants"]["altered-fp32"]["error"]
    assert len(result["failures"]) == 2


def test_processes_that_crash_hang_or_fail(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import os, signal, sys, time\n"
    code += "time.sleep(60) if sys.argv[1] == 'hang' else None\n"
    code += "os.kill(os.getpid(), signal.SIGSEGV) if sys.argv[1] == 'crash' else print('said')\n"
    code += "print(os.environ['CUDA_MODULE_LOADING'])\n"
    code += "sys.exit(int(sys.argv[1]))\n"
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(machine.script, "__file__", str(tmp_path / "child.py"))
    log = tmp_path / "logs" / "log"
    assert machine.script.run_here(["crash"], log, 30.0) == "its process crashed: SIGSEGV"
    assert machine.script.run_here(["hang"], log, 0.5) == "it was ended after 0 s"
    assert machine.script.run_here(["2"], log, 30.0) == "its process ended with code 2"
    assert machine.script.run_here(["0"], log, 30.0) == ""
    assert log.read_text().count("said") == log.read_text().count("LAZY") == 2


def test_names_must_tell_bundles_apart(machine: Machine, tmp_path: Path) -> None:
    first = machine.bundle("same")
    second = write_bundle(tmp_path / "elsewhere" / "same", content(("fp32",))).folder
    with pytest.raises(Exception, match="two bundle folders are called same"):
        machine.script.find_bundles([first, second])
    with pytest.raises(Exception, match="no bundle and holds none"):
        machine.script.find_bundles([tmp_path / "nothing"])


def test_samples_of_the_gpu() -> None:
    lines = "1980, 2619, 350.1, 44, 97, 4096\n1500, 2619, [N/A], 45, 12, 5000\nbroken\n"
    found = summarise(lines)
    assert found["sm_mhz"] == {"min": 1500.0, "median": 1740.0, "max": 1980.0}
    assert found["power_w"] == {"min": 350.1, "median": 350.1, "max": 350.1}
    assert summarise("") == {}


def test_without_a_gpu_it_says_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine.bundle("dense")
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=None, reason="no GPU in this test"))
    with pytest.raises(EngineError, match="nothing can be checked here: no GPU in this test"):
        machine.script.main(bundles=[folder], out=machine.out)
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "gpu_check.py"), str(folder), "--out", str(machine.out)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        assert "nothing can be checked here" in done.stderr
    assert "Segmentation" not in done.stderr
