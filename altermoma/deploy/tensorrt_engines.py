"""Builds the engines of a bundle on the machine that is to run them, and records them in its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from altermoma.deploy.bundle import ENGINES_FOLDER, Bundle
from altermoma.deploy.cuda_driver import Gpu, probe_gpu
from altermoma.deploy.manifest import BUILD_COMMAND, NOT_BUILT, EngineRecord, EngineState, StageRecord
from altermoma.deploy.tensorrt_api import import_tensorrt
from altermoma.deploy.tensorrt_builder import BuildLog, BuildOptions, build_engine, engine_key
from altermoma.deploy.tensorrt_config import too_old
from altermoma.deploy.tensorrt_load import device_name
from altermoma.errors import EngineError, UnsupportedError
from altermoma.progress import say, track
from altermoma.storage import content_key, sha256_of, write_bytes

_CUT = "the build was not finished"


def engines_here(bundle: Bundle, options: BuildOptions, *, build: Literal["auto", "require", "never"]) -> Bundle:
    """Builds the engines of one precision where this machine can, and records the outcome in the bundle.

    Args:
        bundle: gains `engines/` and a manifest that lists them, or says why there are none.
        options: how to build.
        build: "require" makes a machine that cannot build an error, "never" does not try.

    Returns:
        The bundle as it now is.

    Raises:
        EngineError: a stage that does not build or is not what was asked for; or nothing to build with, if required.
    """
    reason = "" if build != "never" else "the build was not asked for"
    reason = reason or why_not() or too_old(import_tensorrt(), bundle.manifest)
    if reason and build == "require":
        raise EngineError(
            f"engines cannot be built here: {reason}",
            expected="an NVIDIA GPU and TensorRT of the bundle's target or newer",
            remedy=f"run on the target: {BUILD_COMMAND}",
        )
    if reason:
        return bundle.with_engines(_unfinished(reason, bundle.manifest.engines.built))
    return _build_all(bundle, options)


def why_not() -> str:
    """Why this machine cannot build or run engines; empty if it can. Never crashes."""
    probe = probe_gpu()
    if probe.gpu is None:
        return probe.reason
    try:
        import_tensorrt()
    except UnsupportedError as error:
        return error.found
    return ""


def _unfinished(reason: str, built: Sequence[EngineRecord]) -> EngineState:
    return EngineState(state=NOT_BUILT, reason=reason, command=BUILD_COMMAND, built=tuple(built))


def _build_all(bundle: Bundle, options: BuildOptions) -> Bundle:
    """Records every stage as it is done, so that a killed build goes on where it was."""
    records = bundle.stages(options.precision)
    for stage in track(records.values(), f"engines {options.precision}", total=len(records)):
        bundle = build_stage(bundle, stage, options)
    _remove_stale(bundle)
    return bundle.with_engines(EngineState(state="built", built=bundle.manifest.engines.built))


def _remove_stale(bundle: Bundle) -> None:
    """Deletes plans that the manifest does not list: of older graphs, options, versions or killed builds."""
    listed = {bundle.folder / record.file for record in bundle.manifest.engines.built}
    for path in (bundle.folder / ENGINES_FOLDER).glob("*.plan"):
        if path not in listed:
            path.unlink()


def _require_new_enough(trt: Any, bundle: Bundle) -> None:
    reason = too_old(trt, bundle.manifest)
    if reason:
        raise EngineError(reason, expected="its target's TensorRT or later", remedy="export again with --target")


def build_stage(
    bundle: Bundle,
    stage: StageRecord,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    log: BuildLog | None = None,
) -> Bundle:
    """Builds one stage and records it; an engine of the same key is kept. Only where `why_not` says nothing.

    Args:
        bundle: gains the plan; it counts as unfinished until `engines_here` is through.
        stage: one of the bundle's.
        options: how to build.
        timing_cache: file to read and add to; without it one below the bundle's `engines/`.
        log: receives what TensorRT says; where it collects faults, an engine with some is recorded with them.

    Returns:
        The bundle as it now is.

    Raises:
        EngineError: the stage does not build, or is not what was asked for.
    """
    trt, gpu = import_tensorrt(), require_gpu()
    version, device = str(trt.__version__), device_name(gpu)
    _require_new_enough(trt, bundle)
    key = engine_key(bundle.manifest.files[stage.file].sha256, stage, options, tensorrt=version, device=device)
    if any(record.key == key and not record.fault for record in bundle.manifest.engines.built):
        return bundle
    say(f"building {options.precision} engine of stage {stage.name}")
    file = f"{ENGINES_FOLDER}/{stage.name}-{options.precision}-{key}.plan"
    cache = timing_cache or bundle.folder / ENGINES_FOLDER / timing_cache_name(version, device)
    old = cache.read_bytes() if cache.is_file() else b""
    log = log or BuildLog()
    if any(record.file == file for record in bundle.manifest.engines.built):
        # A faulty engine, whose file gets another plan: a kill in between must not leave a record that does not fit.
        bundle = bundle.with_engines(_unfinished(_CUT, _others(bundle, stage, options)))
    built = build_engine(trt, bundle.graph(stage), stage, options, timing_cache=old, log=log)
    write_bytes(bundle.folder / file, built.plan)
    if built.timing_cache:
        write_bytes(cache, built.timing_cache)
    record = EngineRecord(
        stage=stage.name,
        precision=options.precision,
        file=file,
        sha256=sha256_of(bundle.folder / file),
        size=len(built.plan),
        key=key,
        tensorrt=version,
        device=device,
        precisions=built.layers.counts,
        layers=len(built.layers.layers),
        sparsity=options.sparsity,
        sparse_eligible=len(built.layers.sparse_eligible),
        sparse_picked=len(built.layers.sparse_picked),
        version_compatible=options.builder.version_compatible,
        hardware_compatible=options.builder.hardware_compatible,
        dla_core=options.builder.dla_core if options.on_dla(stage.name) else -1,
        dla_lacks=built.dla_lacks,
        stripped=options.builder.strip,
        fault="; ".join(log.faults or ()),
    )
    return bundle.with_engines(_unfinished(_CUT, [*_others(bundle, stage, options), record]))


def _others(bundle: Bundle, stage: StageRecord, options: BuildOptions) -> list[EngineRecord]:
    """Records of all engines but this stage's in this precision."""
    return [r for r in bundle.manifest.engines.built if (r.stage, r.precision) != (stage.name, options.precision)]


def timing_cache_name(version: str, device: str) -> str:
    """A cache is for one TensorRT version and one GPU."""
    return f"timing-{version}-{content_key({'device': device})}.cache"


def device_here() -> str:
    """`device_name` of this machine.

    Raises:
        EngineError: no GPU.
    """
    return device_name(require_gpu())


def require_gpu() -> Gpu:
    """The first visible GPU.

    Raises:
        EngineError: there is none.
    """
    probe = probe_gpu()
    if probe.gpu is None:
        raise EngineError(probe.reason, expected="an NVIDIA GPU", remedy="use the onnxruntime backend here")
    return probe.gpu
