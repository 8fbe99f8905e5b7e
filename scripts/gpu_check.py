"""Builds, verifies and times the engines of bundles on a machine with a GPU and any TensorRT from 8.5; needs no torch.

    python scripts/gpu_check.py BUNDLES --out runs/gpu

BUNDLES are bundle folders, or folders that hold some. Every precision of every bundle is checked in a process of its
own, so that a crash inside TensorRT costs one step; then the variants of each model take turns frame by frame. Whatever
was found lies in one folder (result.json, result.md, logs). Run again, it goes on where it was; see docs/gpu_check.md.

Ends with 0 if everything passed, 1 if something failed or was not reached, 3 where there is no GPU or no TensorRT.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from altermoma.cli.console import run_app
from altermoma.deploy.bundle import MANIFEST_FILE
from altermoma.deploy.cuda_driver import GpuLostError
from altermoma.deploy.gpu_bench import bench_key, bench_variants
from altermoma.deploy.gpu_check import Variant, check_variant, forget, mark_ended, reopen
from altermoma.deploy.gpu_process import TOO_LONG, hold, run_and_leave, run_process
from altermoma.deploy.manifest import Manifest, from_text
from altermoma.deploy.telemetry import machine
from altermoma.deploy.tensorrt_api import import_tensorrt
from altermoma.deploy.tensorrt_engines import device_here, why_not
from altermoma.errors import BundleError, EngineError, RecipeError
from altermoma.progress import say
from altermoma.report.gpu import failures, gpu_markdown
from altermoma.storage import read_json, write_json, write_text

RESTARTS = 16
"""Of one variant: each costs one step of it, and it has fifteen."""

LOST = 75
"""Exit code of a process to which the GPU was lost; the next one goes on."""

LEAST_S = 15.0
"""Nothing is begun with less time left."""

START_S = 20.0
"""About what the benchmark of a model takes before it measures."""

Runner = Callable[[list[str], Path, float], str]
"""Runs this script with arguments, output to a file, for at most so many seconds; says how it ended, "" if well."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done, and by when (time.monotonic); `broken` are bundles that cannot be read, with the error."""

    out: Path
    variants: dict[str, list[Variant]]
    broken: dict[str, str]
    deadline: float
    step_s: float
    bench_s: float
    threads: int

    @property
    def every(self) -> list[Variant]:
        return [variant for group in self.variants.values() for variant in group]

    def left(self, reserve_s: float = 0.0) -> float:
        return self.deadline - time.monotonic() - reserve_s


def find_bundles(paths: list[Path]) -> list[Path]:
    """Bundle folders among the paths and directly below them, each once.

    Raises:
        BundleError: one that neither is a bundle nor holds any.
    """
    found: list[Path] = []
    for path in paths:
        held = [path] if (path / MANIFEST_FILE).is_file() else sorted(p.parent for p in path.glob(f"*/{MANIFEST_FILE}"))
        if not held:
            raise BundleError(f"{path} is no bundle and holds none", expected="a folder with manifest.json")
        found += [bundle for bundle in held if bundle not in found]
    names = [bundle.resolve().name for bundle in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"two bundle folders are called {', '.join(twice)}", expected="names that tell them apart")
    return found


def group(bundles: list[Path], out: Path) -> tuple[dict[str, list[Variant]], dict[str, str]]:
    """Every precision of every bundle by model, small ones first; and the bundles that cannot be read, with why."""
    sized: list[tuple[int, str, Variant]] = []
    broken: dict[str, str] = {}
    for bundle in bundles:
        try:
            manifest = _manifest(bundle)
        except (BundleError, UnicodeDecodeError) as error:
            broken[bundle.resolve().name] = str(error)
            continue
        for precision, stages in manifest.stages.items():
            size = sum(manifest.files[record.file].size for record in stages.values())
            name = f"{bundle.resolve().name}-{precision}"
            variant = Variant(bundle=bundle, precision=precision, folder=out / name)
            sized.append((size, str(manifest.recipe.get("model", manifest.name)), variant))
    groups: dict[str, list[Variant]] = {}
    for _, model, variant in sorted(sized, key=lambda item: (item[0], item[2].folder.name)):
        groups.setdefault(model, []).append(variant)
    return groups, broken


def _manifest(bundle: Path) -> Manifest:
    path = bundle / MANIFEST_FILE
    return from_text(path.read_text(encoding="utf-8"), str(path))


def run_here(arguments: list[str], log: Path, timeout: float, held: Sequence[int] = ()) -> str:
    """This script once more, in a process of its own."""
    return run_process([sys.executable, str(Path(__file__).resolve()), *arguments], log, timeout, held)


def check_one(plan: Plan, variant: Variant, runner: Runner) -> None:
    """Goes on with a variant until it is through; a step whose process crashes or hangs counts as failed."""
    log = variant.folder / "process.log"
    forget(variant, failures=False)
    reserve = len(plan.variants) * (plan.bench_s + START_S)
    for _ in range(RESTARTS):
        left, done = plan.left(reserve), _finished(variant)
        if left < LEAST_S:
            return
        reopen(variant)
        how = runner([*_common(plan), "--check", variant.folder.name], log, min(left, plan.step_s))
        if how and variant.through:
            # A library that crashes as it is unloaded takes nothing back of what was found before.
            _keep_ended(variant.file, how)
            return
        if how and plan.left(reserve) < LEAST_S:
            # The time of the whole run is over: the step is done again next time.
            forget(variant, failures=False)
            return
        if not how:
            return
        if how.endswith(f"code {LOST}"):
            say(f"{variant.folder.name}: the GPU was lost; going on with the next step")
            continue
        if how.startswith(TOO_LONG) and _finished(variant) > done:
            # Many steps took the time, not the last one: it gets a process of its own.
            forget(variant, failures=False)
        elif not mark_ended(variant, how):
            tail = " ".join(log.read_text(errors="replace").split()[-80:]) if log.is_file() else ""
            write_json(variant.file, variant.read() | {"status": "failed", "error": f"{how}: {tail}"})
            return
        say(f"{variant.folder.name}: {how}; going on with the next step")


def _finished(variant: Variant) -> int:
    return sum(step["status"] in {"passed", "failed"} for step in variant.read().get("steps", {}).values())


def bench_one(plan: Plan, model: str, runner: Runner) -> None:
    """Times a model's variants unless that was done with these engines and this way."""
    file = plan.out / f"bench-{model}.json"
    key = bench_key(plan.variants[model], seconds=plan.bench_s, threads=plan.threads)
    if file.is_file() and read_json(file).get("key") == key:
        return
    log = plan.out / f"bench-{model}.log"
    if plan.left() < LEAST_S:
        write_json(file, {"error": "not reached in the time given; run the same command again"})
        return
    how = runner([*_common(plan), "--bench", model], log, min(plan.left(), 60 + 4 * plan.bench_s))
    if how and file.is_file() and read_json(file).get("key") == key:
        _keep_ended(file, how)
    elif how:
        tail = " ".join(log.read_text(errors="replace").split()[-80:]) if log.is_file() else ""
        write_json(file, {"error": f"{how}: {tail}"})


def _keep_ended(file: Path, how: str) -> None:
    say(f"{file.name}: everything was done, then {how}")
    write_json(file, read_json(file) | {"ended": how})


def _common(plan: Plan) -> list[str]:
    bundles = dict.fromkeys(str(variant.bundle) for variant in plan.every)
    return [*bundles, "--out", str(plan.out), "--threads", str(plan.threads), "--bench-seconds", str(plan.bench_s)]


def write_result(plan: Plan, about: dict[str, Any]) -> list[str]:
    """result.json and result.md; gives what failed."""
    benchmarks = {model: plan.out / f"bench-{model}.json" for model in plan.variants}
    result: dict[str, Any] = {
        "machine": about,
        "variants": {variant.folder.name: variant.read() for variant in plan.every}
        | {name: {"status": "failed", "error": error} for name, error in plan.broken.items()},
        "benchmarks": {model: read_json(file) for model, file in benchmarks.items() if file.is_file()},
    }
    faults = result["failures"] = list(failures(result))
    write_json(plan.out / "result.json", result)
    write_text(plan.out / "result.md", gpu_markdown(result))
    return faults


def run_plan(plan: Plan, runner: Runner) -> list[str]:
    """Checks, then times; the result is on file after every part."""
    about = machine() | {"device": device_here(), "tensorrt": str(import_tensorrt().__version__)}
    started = time.monotonic()
    for variant in sorted(plan.every, key=_size):
        say(f"{variant.folder.name}: {plan.left() / 60:.1f} minutes left")
        check_one(plan, variant, runner)
        write_result(plan, about | {"seconds": round(time.monotonic() - started)})
    for model in plan.variants:
        bench_one(plan, model, runner)
        write_result(plan, about | {"seconds": round(time.monotonic() - started)})
    return write_result(plan, about | {"seconds": round(time.monotonic() - started)})


def _size(variant: Variant) -> int:
    return sum(path.stat().st_size for path in (variant.bundle / "stages" / variant.precision).glob("*"))


def main(  # noqa: PLR0913 - one parameter per option
    *,
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="Folder of the result.")],
    minutes: Annotated[float, typer.Option(help="For everything; what is not reached is done by the next run.")] = 20.0,
    step_minutes: Annotated[float, typer.Option(help="A step that takes longer has failed.")] = 8.0,
    bench_seconds: Annotated[float, typer.Option(help="Measured time for each model.")] = 45.0,
    threads: Annotated[int, typer.Option(min=1, help="CPUs that the benchmark is kept on.")] = 4,
    retry: Annotated[bool, typer.Option(help="Do failed steps again.")] = False,
    check: Annotated[str, typer.Option(hidden=True)] = "",
    bench: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Builds, verifies and times the engines of bundles."""
    deadline = time.monotonic() + 60 * minutes
    variants, broken = group(find_bundles(bundles), out)
    reason = why_not()
    if reason:
        raise EngineError(
            f"nothing can be checked here: {reason}",
            expected="an NVIDIA GPU and TensorRT 8.5 or newer",
            remedy="run this on the machine that is to run the engines; docs/gpu_check.md",
        )
    plan = Plan(
        out=out,
        variants=variants,
        broken=broken,
        deadline=deadline,
        step_s=60 * step_minutes,
        bench_s=bench_seconds,
        threads=threads,
    )
    if check:
        variant = next(v for v in plan.every if v.folder.name == check)
        try:
            check_variant(variant, timing_cache=out / "timing.cache", device=device_here())
        except GpuLostError as error:
            say(str(error))
            raise typer.Exit(LOST) from error
        return
    if bench:
        record = bench_variants(variants[bench], seconds=bench_seconds, threads=threads)
        write_json(out / f"bench-{bench}.json", record)
        return
    out.mkdir(parents=True, exist_ok=True)
    with hold([out, *(variant.bundle for variant in plan.every)]) as held:
        faults = _check_here(plan, held, retry=retry)
    print((out / "result.md").read_text(encoding="utf-8"))
    raise typer.Exit(1 if faults else 0)


def _check_here(plan: Plan, held: Sequence[int], *, retry: bool) -> list[str]:
    if retry:
        for variant in plan.every:
            forget(variant, failures=True)
    return run_plan(plan, partial(run_here, held=held))


if __name__ == "__main__":
    run_and_leave(lambda: run_app(lambda: typer.run(main)))
