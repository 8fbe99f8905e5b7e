"""Files that are either whole or absent: atomic writes, hashes, content keys."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from altermoma.errors import StorageError

_STORAGE_ERRNOS = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EROFS: "choose a folder you can write to",
    errno.EACCES: "choose a folder you can write to",
    errno.EPERM: "choose a folder you can write to",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EEXIST: "choose a path whose parents are folders",
}


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_key(record: Any) -> str:
    """Twelve hex digits that change whenever the JSON-serialisable `record` does."""
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def cache_folder() -> Path:
    """Where what can be made again is kept: `$ALTERMOMA_CACHE`, else `~/.cache/altermoma`."""
    return Path(os.environ.get("ALTERMOMA_CACHE") or Path.home() / ".cache" / "altermoma")


WRITE_ONLY = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors that only a write can meet; the others may come from reading."""


@contextlib.contextmanager
def storage_errors(path: Path, only: Container[int] | None = None) -> Iterator[None]:
    """Turns a full disk or a read-only place into an error that says so; `only` names the error numbers meant."""
    try:
        yield
    except OSError as error:
        remedy = _STORAGE_ERRNOS.get(error.errno or 0)
        if remedy is None or (only is not None and error.errno not in only):
            raise
        raise StorageError(
            f"cannot write {path}: {os.strerror(error.errno or 0)}", expected="a writable place", remedy=remedy
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write a file or folder to; renamed onto `path` on success.

    A folder replaces an existing folder. On any error the temporary path is removed and `path` is untouched.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    draft = holder / path.name
    try:
        with storage_errors(path):
            yield draft
            if draft.is_dir() and path.is_dir():
                path.rename(holder / "replaced")
            draft.replace(path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Says before the work, not after it, that a file or folder could not be written at `path`.

    Raises:
        StorageError: naming the path and why.
    """
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {os.strerror(error.errno or 0)}",
            expected="a writable place",
            remedy="choose a folder you can write to",
        ) from error


def write_bytes(path: Path, payload: bytes) -> None:
    with atomic_path(path) as draft, draft.open("wb") as stream:
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, record: Any) -> None:
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; a missing or broken file is an error naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"no file {path}", expected="a JSON file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StorageError(f"{path} is not valid JSON: {error}", remedy="delete it and run the step again") from error
