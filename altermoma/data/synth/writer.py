"""Writes a whole synthetic world: one process per scene, then the merged tables. A killed writer goes on by scene."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from altermoma.data.synth import tables
from altermoma.data.synth.mounting import SENSORS
from altermoma.data.synth.scene import VERSION, SceneWriter
from altermoma.data.synth.splits import MINI_VAL, scene_names
from altermoma.data.synth.tables import Record
from altermoma.data.synth.world import SceneWorld
from altermoma.errors import DataError, StorageError
from altermoma.progress import say, track
from altermoma.storage import cache_folder, content_key, read_json, storage_errors, write_text

GENERATOR = 1
"""Raised with every change of what is written, so that caches are not mixed."""

WORLD, SCENES = "world", "scenes"
"""Folders of an unfinished world: the data set as far as it is, and the records of its whole scenes."""


def write_world(
    root: Path | str,
    *,
    scenes: int = 10,
    seed: int = 7,
    jobs: int = 2,
    keyframes: int = 20,
    names: Sequence[str] | None = None,
) -> Path:
    """Writes a data set in the nuScenes v1.0 schema, version `v1.0-mini`.

    Same arguments, same bytes, whatever `jobs` is. A scene depends on its name, the seed and the number of key frames
    only, so that a small world is a part of a large one.

    Args:
        root: folder to create; must not exist, or be empty.
        scenes: how many scenes; the first ten are those of the devkit's mini splits.
        seed: of everything random.
        jobs: processes.
        keyframes: per scene, 0.5 s apart.
        names: scene names instead of the first `scenes`.

    A writer that was killed leaves its scenes in a hidden folder beside `root`; the same call takes them over.

    Returns:
        The root.

    Raises:
        DataError: the folder holds something, or a number makes no sense.
        StorageError: it cannot be written, or another process is writing it.
    """
    root = Path(root)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(
            f"{root} is not an empty folder",
            expected="a new folder",
            remedy="choose another place or remove what is there",
        )
    if keyframes < 1 or jobs < 1:
        raise DataError(f"{keyframes} key frames, {jobs} jobs", expected="at least 1 of each")
    if seed < 0:
        raise DataError(f"seed {seed}", expected="0 or more", remedy="choose another seed")
    try:
        chosen = tuple(names) if names is not None else scene_names(scenes)
    except ValueError as error:
        raise DataError(
            str(error), expected="a number that the scene names suffice for", remedy="ask for fewer scenes, at least 1"
        ) from error
    if len(set(chosen)) < len(chosen):
        raise DataError("a scene is named twice", expected="distinct names")
    with _draft(root, {"generator": GENERATOR, "seed": seed, "keyframes": keyframes, "scenes": chosen}) as draft:
        _write(draft, chosen, seed, keyframes, jobs)
        (draft / WORLD).replace(root)
    return root


@contextlib.contextmanager
def _draft(root: Path, key: dict[str, object]) -> Iterator[Path]:
    """The folder that this world is written in, with what a killed writer of the same world left there."""
    draft = unfinished_of(root)
    with storage_errors(root):
        draft.mkdir(parents=True, exist_ok=True)
        lock = (draft / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another process writes {root}",
                expected="one at a time",
                remedy="wait for it, or choose another place",
            ) from error
        marker, found = draft / "key", content_key(key)
        if not marker.is_file() or marker.read_text() != found:
            for rest in (WORLD, SCENES):
                shutil.rmtree(draft / rest, ignore_errors=True)
            write_text(marker, found)
        try:
            with storage_errors(root):
                yield draft
        except StorageError:
            shutil.rmtree(draft, ignore_errors=True)  # a full disk is not to be kept full
            raise
    shutil.rmtree(draft, ignore_errors=True)


def unfinished_of(root: Path) -> Path:
    """Where a world is while it is written."""
    return root.parent / f".{root.name}.unfinished"


def cached_world(
    scenes: int = 10, seed: int = 7, *, keyframes: int = 20, jobs: int = 2, cache: Path | None = None
) -> Path:
    """The world with these parameters, written at the first call.

    Processes that want it at the same time wait for the first of them: a world is never replaced under a reader.

    Args:
        scenes: how many.
        seed: of everything random.
        keyframes: per scene.
        jobs: processes.
        cache: folder of all cached worlds; that of `storage.cache_folder` where not given.
    """
    folder = cache or cache_folder()
    key = content_key({"generator": GENERATOR, "scenes": scenes, "seed": seed, "keyframes": keyframes})
    root = folder / f"synth-{key}"
    if _is_whole(root):
        return root
    with _alone(folder / f"{root.name}.lock"):
        if _is_whole(root):
            return root
        with storage_errors(folder):
            for rest in (root, *folder.glob(f".{root.name}.*")):  # of processes that were killed
                if rest.is_dir() and rest != unfinished_of(root):
                    shutil.rmtree(rest)
        return write_world(root, scenes=scenes, seed=seed, keyframes=keyframes, jobs=jobs)


def _is_whole(root: Path) -> bool:
    return (root / VERSION / "scene.json").is_file()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits until no other process holds `lock`; the system frees it when its holder dies."""
    with storage_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process writes the same synthetic world: waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write(draft: Path, names: tuple[str, ...], seed: int, keyframes: int, jobs: int) -> None:
    folder = draft / WORLD
    for mount in SENSORS:
        (folder / "samples" / mount.channel).mkdir(parents=True, exist_ok=True)
    for name in ("sweeps/LIDAR_TOP", "maps", VERSION):
        (folder / name).mkdir(parents=True, exist_ok=True)
    work = [(draft, seed, name, keyframes) for name in names if not _records_of(draft, name).is_file()]
    if len(work) < len(names):
        say(f"continuing a world of which {len(names) - len(work)} of {len(names)} scenes are there")
    for _ in track(_run(work, jobs), "Writing the synthetic world", total=len(work)):
        pass
    merged: dict[str, list[Record]] = {name: [] for name in tables.TABLES}
    merged.update(tables.fixed_tables())
    for name in names:
        for table, rows in read_json(_records_of(draft, name)).items():
            merged[table] += rows
    for table, rows in merged.items():
        (folder / VERSION / f"{table}.json").write_text(tables.to_json(rows))
    splits = {
        "synth_train": [name for name in names if name not in MINI_VAL],
        "synth_val": [name for name in names if name in MINI_VAL],
    }
    (folder / VERSION / "splits.json").write_text(tables.to_json(splits))


def _records_of(draft: Path, name: str) -> Path:
    """The records of a scene whose files are all written."""
    return draft / SCENES / f"{name}.json"


_Work = tuple[Path, int, str, int]


def _run(work: list[_Work], jobs: int) -> Iterator[None]:
    """One item for each scene that is done."""
    if min(jobs, len(work)) <= 1:
        yield from map(_write_scene, work)
        return
    # Spawned, not forked: the caller may hold threads (a progress bar, a training loop's prefetcher).
    pool_size = min(jobs, len(work))
    with ProcessPoolExecutor(
        pool_size, mp_context=get_context("spawn"), initializer=_die_with, initargs=(os.getpid(),)
    ) as pool:
        yield from pool.map(_write_scene, work)


def _die_with(parent: int) -> None:
    """Ends this worker soon after `parent` is gone: a killed parent cannot tell its workers to stop."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_scene(work: _Work) -> None:
    draft, seed, name, keyframes = work
    records = SceneWriter(draft / WORLD, SceneWorld(seed, name, keyframes)).write()
    write_text(_records_of(draft, name), tables.to_json(records))
