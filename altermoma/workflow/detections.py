"""Detections of a split as one file, so that a later step need not compute them again; and its parts meanwhile."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from altermoma.errors import StorageError
from altermoma.evaluation.predict import BATCH_SIZE
from altermoma.frames import Boxes
from altermoma.storage import atomic_path

PART = 2 * BATCH_SIZE
"""Frames between two parts on disk. Whole batches: those after a kill are then made up as they would have been."""

Found = Iterable[tuple[str, Boxes]]


def write_detections(path: Path, detections: Mapping[str, Boxes]) -> None:
    """Writes boxes by token as one npz without pickles."""
    found = list(detections.values())
    with atomic_path(path) as draft, draft.open("wb") as stream:
        np.savez_compressed(
            stream,
            tokens=np.array(list(detections), np.str_),
            counts=np.array([len(boxes) for boxes in found], np.int64),
            geometry_m9=np.concatenate([boxes.geometry_m9 for boxes in found]),
            labels_m=np.concatenate([boxes.labels_m for boxes in found]),
            scores_m=np.concatenate([boxes.scores_m for boxes in found]),
        )


def read_detections(path: Path) -> dict[str, Boxes]:
    """Reads what `write_detections` wrote; a missing or damaged file is an error naming it."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StorageError(
            f"{path} is missing or damaged: {error}",
            expected="detections that an earlier step wrote",
            remedy=f"delete {path.parent} and run again",
        ) from error
    ends = np.cumsum(arrays["counts"])
    starts = ends - arrays["counts"]
    return {
        str(token): Boxes(
            geometry_m9=arrays["geometry_m9"][start:end],
            labels_m=arrays["labels_m"][start:end],
            scores_m=arrays["scores_m"][start:end],
        )
        for token, start, end in zip(arrays["tokens"], starts, ends, strict=True)
    }


def keep_detections(file: Path, detect: Callable[[int], Found]) -> dict[str, Boxes]:
    """Detects a split and writes it to `file`; a kill costs at most `PART` frames.

    Args:
        file: whole at the end. Until then parts lie beside it, which a killed process leaves for the next.
        detect: from the index of the first frame to token and boxes of it and those after it, in order.
    """
    if file.is_file():
        return read_detections(file)
    parts = file.with_suffix(".parts")
    found: dict[str, Boxes] = {}
    for part in sorted(parts.glob("*.npz")):
        found |= read_detections(part)
    fresh: dict[str, Boxes] = {}
    for token, boxes in detect(len(found)):
        fresh[token] = boxes
        if len(fresh) == PART:
            write_detections(parts / f"{len(found):08d}.npz", fresh)
            found |= fresh
            fresh = {}
    found |= fresh
    write_detections(file, found)
    shutil.rmtree(parts, ignore_errors=True)
    return found
