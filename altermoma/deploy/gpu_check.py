"""One precision of a bundle on the machine that is to run it: every stage built, read back, run alone, then the frame.

Nothing is given up for one failure: each step's outcome is on file before the next begins. A process that dies leaves
its step as "started"; whoever runs it again first calls `mark_ended`, and the rest is carried on with.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from altermoma.deploy.benchmark import summary
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cuda_driver import GpuLostError
from altermoma.deploy.gpu_frames import PREPARED, check_kernels, frames_on_device
from altermoma.deploy.gpu_tools import check_cross, check_vendor, left_out
from altermoma.deploy.manifest import STAGES, StageRecord
from altermoma.deploy.pipeline import Pipeline, Preparation, open_stages
from altermoma.deploy.reference import Reference
from altermoma.deploy.self_check import check_frame, check_stage, reference_inputs, told_of
from altermoma.deploy.stage_io import StageRunner
from altermoma.deploy.telemetry import sampled
from altermoma.deploy.tensorrt_api import import_tensorrt
from altermoma.deploy.tensorrt_backend import make_cuda, open_engines
from altermoma.deploy.tensorrt_builder import BuildLog, BuildOptions, builder_revision
from altermoma.deploy.tensorrt_config import options_of
from altermoma.deploy.tensorrt_engines import build_stage, engines_here
from altermoma.errors import AltermomaError
from altermoma.storage import content_key, read_json, write_json, write_text

CHECK_FILE = "check.json"
RUNS = 50
"""Runs of one stage alone, of which the first tenth is not counted."""

NOT_FINITE = 1e30
"""Stands for NaN and infinity in a record."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One precision of a bundle, and the folder of what is found out about it."""

    bundle: Path
    precision: str
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / CHECK_FILE

    def read(self) -> Record:
        """What is on file; empty if nothing is."""
        return cast(Record, read_json(self.file)) if self.file.is_file() else {}

    @property
    def through(self) -> bool:
        """Whether every step has its outcome, by what is on file."""
        return self.read().get("status") in {"passed", "failed"}


class _Subject:
    """A variant's bundle, hashed and its reference read once in a process: at full size each takes a second."""

    def __init__(self, variant: Variant) -> None:
        self.folder, self.precision = variant.folder, variant.precision
        self._opened = Bundle.open(variant.bundle)

    @property
    def bundle(self) -> Bundle:
        """As it now is: builds change the manifest."""
        return self._opened.reread()

    @cached_property
    def reference(self) -> Reference:
        return self._opened.reference()


class UnmetError(Exception):
    """A step that ran, and found that something is not as it must be; `found` is kept."""

    def __init__(self, text: str, found: Record) -> None:
        super().__init__(text)
        self.found = found


def check_variant(variant: Variant, *, timing_cache: Path, device: str) -> Record:
    """Does every step that is not done yet; call only where `why_not` says nothing.

    Args:
        variant: what to check.
        timing_cache: file shared by all builds on this machine.
        device: name of the GPU; what was found on another is done again.

    Returns:
        The record on file: `steps` by name, each with `status` ("passed", "failed", "skipped"), `seconds`, `error`.

    Raises:
        BundleError: the bundle is damaged or lacks the precision: there is nothing to check.
        GpuLostError: a step broke the GPU's context; its failure is on file, and a new process goes on.
    """
    subject = _Subject(variant)
    bundle = subject.bundle
    held = bundle.stages(variant.precision)
    stages = {name: held[name] for name in STAGES if name in held}
    options = options_of(bundle.manifest, variant.precision)
    book = _Book(variant, _key(bundle, options, device), bundle)
    for stage in stages.values():
        book.step(f"build {stage.name}", partial(_build, subject, stage, options, timing_cache))
    for stage in stages.values():
        book.step(f"run {stage.name}", partial(_run, subject, stage), needs=[f"build {stage.name}"])
    built = [f"build {name}" for name in stages]
    book.step("frame", partial(_frame, subject, options), needs=built)
    book.step("onnxruntime", partial(_control, subject))
    book.step("kernels", partial(_kernels, subject))
    for name, preparation in PREPARED.items():
        book.step(name, partial(_device_frames, subject, cast(Any, preparation)), needs=["frame"])
    book.step("cross", partial(_cross, subject), needs=built)
    book.step("vendor", partial(_vendor, subject))
    return book.close()


def pardoned(bundle: Bundle) -> Bundle:
    """The bundle with its engines pardoned in memory: those that are not what was asked for run too, and only here."""
    engines = bundle.manifest.engines
    built = tuple(dataclasses.replace(record, fault="") for record in engines.built)
    manifest = dataclasses.replace(bundle.manifest, engines=dataclasses.replace(engines, built=built))
    return dataclasses.replace(bundle, manifest=manifest)


def mark_ended(variant: Variant, how: str) -> bool:
    """Turns a step that was under way when its process ended into a failure; says whether there was one.

    Args:
        variant: whose process it was.
        how: what became of the process.
    """
    record = variant.read()
    started = [step for step in record.get("steps", {}).values() if step["status"] == "started"]
    for step in started:
        step |= {"status": "failed", "error": how}
    if started:
        write_json(variant.file, record)
    return bool(started)


def reopen(variant: Variant) -> None:
    """Takes back that a variant is through, which the next process is to say of this machine and these engines."""
    record = variant.read()
    if record:
        told = {key: value for key, value in record.items() if key not in {"error", "ended"}}
        write_json(variant.file, told | {"status": "unfinished"})


def forget(variant: Variant, *, failures: bool) -> None:
    """Takes steps off the file, so that they are done again: those under way, or those that failed as well.

    With a build goes all that was found out about its engine: the next one is another, by its own timings.
    """
    record = variant.read()
    again = {"started", "failed"} if failures else {"started"}
    steps = record.get("steps", {})
    gone = {name for name, step in steps.items() if step["status"] in again}
    gone |= {step for name in gone for step in steps if _goes_with(step, name)}
    kept = {name: step for name, step in steps.items() if name not in gone}
    if len(kept) < len(steps):
        write_json(variant.file, record | {"steps": kept, "status": "unfinished"})


def _goes_with(step: str, build: str) -> bool:
    """Whether a step ran the engine that another step built."""
    what, _, stage = build.partition(" ")
    return what == "build" and (step in {f"run {stage}", "frame", "cross"} or step in PREPARED)


def _key(bundle: Bundle, options: BuildOptions, device: str) -> str:
    files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    trt = str(import_tensorrt().__version__)
    build = {"options": dataclasses.asdict(options), "builder": builder_revision()}
    return content_key({"files": files, "tensorrt": trt, "device": device, **build})


class _Book:
    """Steps by name, written at every change."""

    def __init__(self, variant: Variant, key: str, bundle: Bundle) -> None:
        old = variant.read()
        manifest = bundle.manifest
        self._variant = variant
        self.record: Record = {
            "key": key,
            "status": "unfinished",
            "name": manifest.name,
            "model": str(manifest.recipe.get("model", manifest.name)),
            "precision": variant.precision,
            "metrics": manifest.metrics,
            "steps": old["steps"] if old.get("key") == key else {},
        }

    def step(self, name: str, work: Callable[[], Record], needs: list[str] | None = None) -> None:
        """Runs one step unless its outcome is known."""
        steps = self.record["steps"]
        if steps.get(name, {}).get("status") in {"passed", "failed"}:
            return
        unmet = [need for need in needs or [] if steps[need]["status"] != "passed" and not steps[need].get("built")]
        if unmet:
            steps[name] = {"status": "skipped", "error": f"no success in: {', '.join(unmet)}"}
            return
        steps[name] = {"status": "started"}
        self._write()
        started = time.perf_counter()
        lost: GpuLostError | None = None
        try:
            steps[name] = _finite(_outcome(work))
        except GpuLostError as error:
            lost, steps[name] = error, {"status": "failed", "error": str(error)}
        steps[name]["seconds"] = round(time.perf_counter() - started, 2)
        self._write()
        if lost is not None:
            raise lost

    def close(self) -> Record:
        failed = any(step["status"] == "failed" for step in self.record["steps"].values())
        self.record["status"] = "failed" if failed else "passed"
        self._write()
        return self.record

    def _write(self) -> None:
        write_json(self._variant.file, self.record)


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity, which are what a broken engine gives."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else NOT_FINITE


def _outcome(work: Callable[[], Record]) -> Record:
    try:
        return {"status": "passed", **work()}
    except UnmetError as error:
        return {"status": "failed", "error": str(error), **error.found}
    except GpuLostError:
        raise
    except AltermomaError as error:
        return {"status": "failed", "error": str(error)}
    except Exception as error:  # whatever a runtime raises is a result here, and the next step is to run
        return {"status": "failed", "error": repr(error), "traceback": traceback.format_exc()}


def _build(subject: _Subject, stage: StageRecord, options: BuildOptions, timing_cache: Path) -> Record:
    """Time, size, and what the inspector read back; everything that TensorRT said lies beside the record.

    An engine that is not what was asked for has failed, and is run and timed all the same (`built`).
    """
    log, gpu = BuildLog(faults=[]), dict[str, Any]()
    try:
        with sampled(gpu):
            bundle = build_stage(subject.bundle, stage, options, timing_cache=timing_cache, log=log)
    finally:
        # An engine that was built earlier says nothing: its log stays.
        if log.messages or log.report:
            write_text(subject.folder / f"{stage.name}.log", "\n".join(log.messages) + "\n")
            write_text(subject.folder / f"{stage.name}.layers.json", log.report + "\n")
    built = next(r for r in bundle.manifest.engines.built if (r.stage, r.precision) == (stage.name, subject.precision))
    found: Record = {"plan_bytes": built.size, "layers": built.precisions, "built_before": not log.report}
    found |= {"built": True, "sparse_eligible": built.sparse_eligible, "sparse_picked": built.sparse_picked}
    if "memory_used_mib" in gpu:
        found["gpu_memory_mib"] = gpu["memory_used_mib"]["max"]
    if log.faults:
        raise UnmetError("; ".join(log.faults), found)
    return found


def _run(subject: _Subject, stage: StageRecord) -> Record:
    """Outputs against the reference's, milliseconds without copies, and device memory."""
    runner = open_engines(pardoned(subject.bundle), subject.precision, only=[stage.name])[stage.name]
    found = _parity(subject, runner)
    times = runner.execution_ms(reference_inputs(stage, subject.reference), RUNS)
    found |= {"execution_ms": summary(times[RUNS // 10 :]), "memory_bytes": runner.memory_bytes()}
    return _held(found)


def _parity(subject: _Subject, runner: StageRunner) -> Record:
    allowed = subject.bundle.manifest.tolerances[subject.precision]
    checks = check_stage(subject.precision, runner, subject.reference, allowed)
    return {"parity": [dataclasses.asdict(c) for c in checks]}


def _held(found: Record) -> Record:
    beyond = [c for c in found["parity"] if c["difference"] > c["allowed"]]
    if beyond:
        told = (f"{c['stage']}.{c['tensor']} {told_of(c['measure'], c['difference'], c['allowed'])}" for c in beyond)
        raise UnmetError(f"beyond the tolerance: {', '.join(told)}", found)
    return found


def _frame(subject: _Subject, options: BuildOptions) -> Record:
    """From raw sensor arrays to boxes; with every stage built and verified, the bundle's engines are complete."""
    bundle = subject.bundle
    if not any(record.fault for record in bundle.manifest.engines.built if record.precision == subject.precision):
        engines_here(bundle, options, build="require")
    bundle = pardoned(subject.bundle)
    pipeline = Pipeline(bundle.manifest.geometry, open_engines(bundle, subject.precision))
    check = check_frame(subject.precision, pipeline, subject.reference)
    found = dataclasses.asdict(check)
    if not check.passed:
        raise UnmetError(f"{check.matched} of {check.boxes} boxes found again, {check.centre_m:.3f} m off", found)
    return found


def _device_frames(subject: _Subject, preparation: Preparation) -> Record:
    """The runtime that a vehicle uses: streams, graphs, buckets, frames prepared here or there."""
    found, wrong = frames_on_device(pardoned(subject.bundle), subject.reference, subject.precision, preparation)
    if wrong:
        raise UnmetError(wrong, found)
    return found


def _kernels(subject: _Subject) -> Record:
    """The device kernels against numpy, once per bundle: they do not depend on the engines' precision."""
    if subject.precision != "fp32":
        return {"note": "not run: only for fp32, as precisions of a bundle share their inputs"}
    found, wrong = check_kernels(subject.bundle, subject.reference, subject.precision, make_cuda())
    if wrong:
        raise UnmetError(wrong, found)
    return found


def _control(subject: _Subject) -> Record:
    """The same graphs on ONNX Runtime here: tells whether the bundle or the engine is to blame."""
    if subject.precision != "fp32" or importlib.util.find_spec("onnxruntime") is None:
        return {"note": "not run: only for fp32, where onnxruntime is installed"}
    runners = open_stages(subject.bundle, "onnxruntime", subject.precision, threads=os.cpu_count() or 1)
    found: Record = {"parity": []}
    for runner in runners.values():
        found["parity"] += _parity(subject, runner)["parity"]
    return _held(found)


def _cross(subject: _Subject) -> Record:
    """The vendor's own judge of the engines that the check built, on what both runtimes answer here."""
    reason = left_out(subject.bundle, subject.precision, "onnxruntime")
    if reason:
        return {"note": reason}
    found, wrong = check_cross(pardoned(subject.bundle), subject.reference, subject.precision)
    if wrong:
        raise UnmetError(wrong, found)
    return found


def _vendor(subject: _Subject) -> Record:
    """What the bundle's README has its reader type, once per bundle: it builds engines of its own."""
    reason = left_out(subject.bundle, subject.precision, "onnxruntime", "polygraphy")
    if reason or subject.precision != "fp32":
        return {"note": reason or "not run: only for fp32, as the commands differ in a few options"}
    major = int(str(import_tensorrt().__version__).partition(".")[0])
    found, wrong = check_vendor(subject.bundle, subject.reference, subject.precision, major)
    if wrong:
        raise UnmetError(wrong, found)
    return found
