"""Resumable steps: each has a content key of its inputs, a folder, and a marker that says it is done.

A step reads only what earlier steps wrote, so a run that was killed and continued goes through the same files as
one that was not. `started.json` holds the key of an unfinished step, so that its own partial state (training
checkpoints) is continued when the key still fits and removed when it does not. `done.json` is written last, atomically.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altermoma.errors import RecipeError, StorageError
from altermoma.progress import busy, say
from altermoma.storage import WRITE_ONLY, content_key, read_json, storage_errors, write_json

Record = dict[str, Any]
Records = dict[str, Record]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run.

    Attributes:
        name: also its folder's name.
        inputs: JSON-serialisable, everything besides earlier steps that decides the result.
        needs: names of the earlier steps whose results it reads.
        run: gets the step's folder and the records of all earlier steps; returns its own JSON record.
        title: what the user reads while it runs.
    """

    name: str
    title: str
    inputs: Any
    needs: tuple[str, ...]
    run: Callable[[Path, Records], Record]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a finished step left: its record, its cost, and whether this process did it."""

    key: str
    record: Record
    seconds: float
    peak_memory_mib: float
    reused: bool


def step_keys(steps: Sequence[Step], code: str) -> dict[str, str]:
    """The content key of every step; a step's key contains the keys of the steps it needs."""
    keys: dict[str, str] = {}
    for step in steps:
        needed = {name: keys[name] for name in step.needs}
        keys[step.name] = content_key({"step": step.name, "inputs": step.inputs, "needs": needed, "code": code})
    return keys


def run_steps(steps: Sequence[Step], folder: Path, code: str) -> dict[str, StepResult]:
    """Runs what is not done yet, in order, and returns every step's result.

    Args:
        steps: in an order in which every step follows those it needs.
        folder: holds one folder per step.
        code: version of the code, part of every key.

    Raises:
        RecipeError: this is one of several processes.
    """
    _check_alone()
    keys = step_keys(steps, code)
    results: dict[str, StepResult] = {}
    for step in steps:
        place = folder / step.name
        found = _finished(place, keys[step.name])
        if found is None:
            records = {name: result.record for name, result in results.items()}
            found = _perform(step, place, keys[step.name], records)
        results[step.name] = found
    return results


def _check_alone() -> None:
    """Several processes would all do the same steps in the same folder."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise RecipeError(
            f"{count} processes of a command that works in one",
            expected="torchrun with `altermoma train` alone",
            remedy="prune, then torchrun with `altermoma train`, then export; without torchrun, unset WORLD_SIZE",
        )


def _finished(place: Path, key: str) -> StepResult | None:
    marker = place / "done.json"
    if not marker.is_file():
        return None
    done = read_json(marker)
    if done.get("key") != key:
        return None
    say(f"{place.name}: done before, kept")
    return StepResult(
        key=key, record=done["record"], seconds=done["seconds"], peak_memory_mib=done["peak_memory_mib"], reused=True
    )


def _perform(step: Step, place: Path, key: str, records: Records) -> StepResult:
    _prepare(place, key)
    say(f"{step.title} ...")
    started = time.monotonic()
    with busy(step.title), storage_errors(place, only=WRITE_ONLY):
        record = step.run(place, records)
    spent = time.monotonic() - started
    result = StepResult(key=key, record=record, seconds=spent, peak_memory_mib=peak_memory_mib(), reused=False)
    write_json(
        place / "done.json",
        {"key": key, "record": record, "seconds": spent, "peak_memory_mib": result.peak_memory_mib},
    )
    say(f"{step.title}: {spent:.1f} s")
    return result


def _prepare(place: Path, key: str) -> None:
    """Leaves a folder whose content belongs to `key`: this step's partial work, or nothing."""
    marker = place / "started.json"
    fits = marker.is_file() and read_json(marker).get("key") == key
    # The marker goes first: a kill while the rest is removed must not leave a step that looks done.
    (place / "done.json").unlink(missing_ok=True)
    if place.exists() and not fits:
        with storage_errors(place):
            shutil.rmtree(place)
    if not fits:
        write_json(marker, {"key": key})


def peak_memory_mib() -> float:
    """Largest resident memory so far of this process or of its largest finished child, MiB."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def require_file(path: Path) -> Path:
    """A file that an earlier step promised."""
    if not path.is_file():
        raise StorageError(
            f"{path} is gone", expected="a file of an earlier step", remedy=f"delete {path.parent} and run again"
        )
    return path
