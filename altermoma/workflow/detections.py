"""Detections of a split as one file, so that a later step need not compute them again."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from altermoma.errors import StorageError
from altermoma.frames import Boxes
from altermoma.storage import atomic_path


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
