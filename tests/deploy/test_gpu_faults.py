"""Engines that are not what was asked for: the check says so, measures them all the same, and they run nowhere else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from gpu_machine import AFTER, GPU, Machine
from tensorrt_double import VERSIONS, inspector_report

from altermoma.deploy import bundle as bundle_module
from altermoma.deploy import gpu_bench, gpu_check, tensorrt_backend, tensorrt_engines
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import STAGES
from altermoma.deploy.tensorrt_builder import BuildOptions
from altermoma.errors import EngineError

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


def test_an_engine_that_is_not_what_was_asked_for(machine: Machine) -> None:
    machine.bundle("dense")
    report = inspector_report((10, 3), "fp32", "fp16")
    machine.trt.answers[("EngineInspector", "get_engine_information")] = lambda *_: report
    result = machine.run()
    steps = result["variants"]["dense-fp32"]["steps"]
    assert "asked for in fp32 but computes in fp16 in 1 layers" in steps["build head"]["error"]
    assert json.loads((machine.out / "dense-fp32" / "head.layers.json").read_text()) == json.loads(report)
    assert "asked for in fp32" in (machine.out / "result.md").read_text()
    assert {steps[f"build {stage}"]["status"] for stage in STAGES} == {"failed"}
    assert {steps[name]["status"] for name in (*(f"run {s}" for s in STAGES), *AFTER)} == {"passed"}, "measured anyway"
    assert result["benchmarks"]["toy"]["ways"] == {"dense-fp32": "device"}


def test_what_was_measured_anyway_runs_nowhere_else(machine: Machine) -> None:
    folder = machine.bundle("dense")
    report = inspector_report((10, 3), "fp32", "fp16")
    machine.trt.answers[("EngineInspector", "get_engine_information")] = lambda *_: report
    variant = gpu_check.Variant(bundle=folder, precision="fp32", folder=machine.out / "dense-fp32")
    gpu_check.check_variant(variant, timing_cache=machine.out / "timing.cache", device=str(GPU))
    bundle = Bundle.open(folder)
    assert bundle.manifest.engines.state != "built"
    with pytest.raises(EngineError, match="not what was asked for: stage camera was asked for in fp32"):
        tensorrt_backend.load_engines(bundle, "fp32")
    with pytest.raises(EngineError, match="asked for in fp32 but computes in fp16"):
        tensorrt_engines.engines_here(bundle, BuildOptions(precision="fp32"), build="require")
    machine.trt.answers[("EngineInspector", "get_engine_information")] = lambda *_: inspector_report((10, 3), "fp32")
    built = tensorrt_engines.engines_here(Bundle.open(folder), BuildOptions(precision="fp32"), build="require")
    assert set(tensorrt_backend.load_engines(built, "fp32")) == set(STAGES)


def test_two_four_that_is_picked_nowhere_is_a_fault_of_the_engine(machine: Machine) -> None:
    """The check records it; a build takes a stage that stays dense (docs/targets.md)."""

    def dense_kernels(*_: object) -> bytearray:
        logger, verbose = machine.trt.called("Builder", "__init__")[-1][0], machine.trt.ILogger.Severity.VERBOSE
        for text in ("Found 3 layer(s) eligible to use", "Chose 0 layer(s) using"):
            logger.log(verbose, f"(Sparsity) {text} sparse tactics")
        return bytearray(machine.parsed[-1])

    folder = machine.bundle("sparse", precisions=("fp16",), sparsity="2:4")
    machine.trt.answers[("Builder", "build_serialized_network")] = dense_kernels
    steps = machine.run()["variants"]["sparse-fp16"]["steps"]
    for stage in STAGES:
        build = steps[f"build {stage}"]
        assert build["status"] == "failed"
        assert build["error"] == "2:4 was asked for; TensorRT found layers eligible and picked none"
        assert (build["sparse_eligible"], build["sparse_picked"]) == (3, 0)
        assert steps[f"run {stage}"]["status"] == "passed", "measured anyway"
    engines = Bundle.open(folder).manifest.engines
    assert engines.state != "built"
    assert all("picked none" in record.fault for record in engines.built)
    options = BuildOptions(precision="fp16", sparsity="2:4")
    built = tensorrt_engines.engines_here(Bundle.open(folder), options, build="require").manifest.engines
    assert {record.fault for record in built.built} == {""}


def test_what_an_engine_did_is_forgotten_with_its_build(tmp_path: Path) -> None:
    names = [*(f"{what} {stage}" for what in ("build", "run") for stage in STAGES), *AFTER]
    variant = gpu_check.Variant(bundle=tmp_path, precision="fp32", folder=tmp_path)

    def left(*failed: str) -> set[str]:
        steps = {name: {"status": "failed" if name in failed else "passed"} for name in names}
        variant.file.write_text(json.dumps({"steps": steps}))
        gpu_check.forget(variant, failures=True)
        return set(names) - set(variant.read()["steps"])

    assert left("build view") == {"build view", "run view", "frame", "frame, host", "frame, device", "cross"}
    assert left("run view", "kernels") == {"run view", "kernels"}


def test_other_plans_are_timed_anew(machine: Machine) -> None:
    """Built again, an engine may consist of other kernels under the same key."""
    folder = machine.bundle("dense")
    machine.run()
    variants = [gpu_check.Variant(bundle=folder, precision="fp32", folder=machine.out / "dense-fp32")]
    before = gpu_bench.bench_key(variants, seconds=1.0, threads=1)
    assert gpu_bench.bench_key(variants, seconds=1.0, threads=1) == before
    bundle = Bundle.open(folder)
    first, *rest = bundle.manifest.engines.built
    again = dataclasses.replace(first, sha256="0" * 64)
    bundle.with_engines(dataclasses.replace(bundle.manifest.engines, built=(again, *rest)))
    assert gpu_bench.bench_key(variants, seconds=1.0, threads=1) != before


def test_frames_that_are_right_are_timed_as_a_vehicle_runs_them_though_no_graph_was_captured(tmp_path: Path) -> None:
    steps = {
        "frame, host": {"status": "failed", "right": True, "captures": {"lidar": 0}},
        "frame, device": {"status": "failed", "right": False},
    }
    variant = gpu_check.Variant(bundle=tmp_path, precision="fp16", folder=tmp_path)
    variant.file.write_text(json.dumps({"steps": steps}))
    assert gpu_bench.way_of(variant) == "host"
    variant.file.write_text(json.dumps({"steps": {}}))
    assert gpu_bench.way_of(variant) == gpu_bench.STAGEWISE


def test_a_bundle_is_hashed_and_its_reference_read_once_in_a_process(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"_check_files": 0, "read_reference": 0}

    def count(name: str) -> None:
        whole = getattr(bundle_module, name)

        def counted(*arguments: Any) -> Any:
            counts[name] += 1
            return whole(*arguments)

        monkeypatch.setattr(bundle_module, name, counted)

    folder = machine.bundle("dense")
    for name in counts:
        count(name)
    variant = gpu_check.Variant(bundle=folder, precision="fp32", folder=machine.out / "dense-fp32")
    record = gpu_check.check_variant(variant, timing_cache=machine.out / "timing.cache", device=str(GPU))
    assert record["status"] == "passed"
    # A vehicle's pipeline that prepares frames on the device reads how large its pictures are.
    assert counts == {"_check_files": 1, "read_reference": 2}
    assert len(Bundle.open(folder).manifest.engines.built) == len(STAGES)
