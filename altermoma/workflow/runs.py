"""Where a run lives: a new folder, or the unfinished one of the same content key."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altermoma.errors import StorageError
from altermoma.progress import say
from altermoma.recipe import Recipe, from_dict
from altermoma.storage import read_json, storage_errors, write_json

RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """An open, locked run. `steps` holds the work of each step; results lie beside it."""

    path: Path

    @property
    def steps(self) -> Path:
        return self.path / "steps"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


@contextlib.contextmanager
def open_run(
    recipe: Recipe, key: str, out: Path | None, runs: Path = RUNS, *, same_only: bool = False
) -> Iterator[RunFolder]:
    """Yields the folder of this run, locked against a second process.

    Args:
        recipe: names a new folder, and is written into it.
        key: content key of the whole run.
        out: the folder asked for; None continues an unfinished run of the same key below `runs`, or starts
            `runs/<recipe>-<time>`.
        runs: where runs live by default.
        same_only: refuse a folder whose results belong to another key instead of replacing them.

    Raises:
        StorageError: the folder is in use, holds something else, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        path = out if out is not None else _unfinished(key, runs, stack)
        if path is None:
            path = _fresh(runs, recipe.name)
            say(f"run folder: {path}")
        elif out is None:
            say(f"continuing the unfinished run in {path}")
        if out is not None or not (path / "run.json").is_file():
            _claim(path, stack)
        run = RunFolder(path=path)
        record = {"key": key, "recipe": recipe.to_dict()}
        found = _record_of(path / "run.json")
        if found.get("key") != key and same_only:
            raise StorageError(
                f"{path} was made by another version of the program, or its data or weights have changed",
                expected="a run that this program would make again as it is",
                remedy=f"keep its report, or do it again: altermoma-export ... --out {path}",
            )
        if found != record:
            _drop_results(run)
            write_json(path / "run.json", record)
        yield run


def recipe_of(path: Path) -> Recipe:
    """The recipe a run folder was made with."""
    marker = path / "run.json"
    if not marker.is_file():
        raise StorageError(
            f"{path} is no run folder", expected="a folder with run.json", remedy="give the --out of a run"
        )
    record = read_json(marker)
    if not isinstance(record, dict) or not isinstance(record.get("recipe"), dict):
        raise StorageError(
            f"{marker} names no recipe",
            expected="the record of a run",
            remedy=f"do the run again: altermoma-export --recipe FILE --out {path}",
        )
    return from_dict(Recipe, record["recipe"])


def _fresh(runs: Path, name: str) -> Path:
    base = runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = base, 1
    while path.exists():
        count += 1
        path = base.with_name(f"{base.name}-{count}")
    return path


def _unfinished(key: str, runs: Path, stack: contextlib.ExitStack) -> Path | None:
    """The newest run of this key that has no summary yet and that no other process works in; locked."""
    for marker in sorted(runs.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        if (marker.parent / "summary.json").is_file() or _record_of(marker).get("key") != key:
            continue
        if lock(marker.parent, stack):
            return marker.parent
    return None


def _record_of(marker: Path) -> dict[str, Any]:
    """Key and recipe of a run; empty where its marker is missing or damaged, which must not stop this or other runs."""
    try:
        found = read_json(marker)
    except StorageError:
        return {}
    return found if isinstance(found, dict) else {}


def _drop_results(run: RunFolder) -> None:
    """Results of another key must not pass for this run's while it is under way."""
    with storage_errors(run.path):
        run.summary.unlink(missing_ok=True)
        run.report.unlink(missing_ok=True)
        if run.bundle.is_dir():
            shutil.rmtree(run.bundle)


def _claim(path: Path, stack: contextlib.ExitStack) -> None:
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file", expected="a folder for the run", remedy="give another --out")
    foreign = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
    if foreign and not (path / "run.json").is_file():
        raise StorageError(
            f"{path} is not empty and is no run folder",
            expected="a new folder, or that of an earlier run",
            remedy="give another --out",
        )
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    if not lock(path, stack):
        raise StorageError(
            f"another run works in {path}",
            expected="a folder that no other process works in",
            remedy="wait for it, or give another --out",
        )


def lock(path: Path, stack: contextlib.ExitStack) -> bool:
    """Locks a folder until the stack closes; False where another process has it. The system frees a dead one's."""
    with storage_errors(path):
        stream = stack.enter_context((path / ".lock").open("w"))
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
