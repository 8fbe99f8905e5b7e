"""Splits a folder into numbered pieces of a limited size, and joins them again, every byte checked; needs nothing.

    python scripts/pieces.py split runs/gpu_bundles pieces --mib 52
    python scripts/pieces.py take carried pieces                    # where they arrive a few at a time
    python scripts/pieces.py join pieces runs/gpu_bundles

The pieces are a tar archive cut up; index.json lists their SHA-256. `take` keeps those that lie in a folder whose
content is replaced by the next ones, and tells which are still to come. Nothing is left behind by a join that fails.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

INDEX = "index.json"


class Splitter(io.RawIOBase):
    """Takes a stream, and leaves pieces of at most `limit` bytes and what the index says of each."""

    def __init__(self, folder: Path, limit: int) -> None:
        super().__init__()
        self._folder, self._limit = folder, limit
        self.pieces: list[dict[str, str | int]] = []
        self._open = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._open += data
        while len(self._open) >= self._limit:
            self._put(self._limit)
        return len(data)

    def finish(self) -> None:
        if self._open:
            self._put(len(self._open))

    def _put(self, size: int) -> None:
        block, self._open = bytes(self._open[:size]), self._open[size:]
        name = f"piece.{len(self.pieces):03d}"
        (self._folder / name).write_bytes(block)
        self.pieces.append({"name": name, "size": size, "sha256": hashlib.sha256(block).hexdigest()})


class Joiner(io.RawIOBase):
    """Reads pieces as one stream."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__()
        self._files, self._block = list(files), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if not self._block and self._files:
            self._block = memoryview(self._files.pop(0).read_bytes())
        size = min(len(buffer), len(self._block))
        buffer[:size], self._block = self._block[:size], self._block[size:]
        return size


def split(folder: Path, pieces: Path, mib: int) -> list[dict[str, str | int]]:
    """Writes pieces and index into an empty or new folder; gives the index."""
    if not folder.is_dir():
        sys.exit(f"error: no folder {folder}")
    if pieces.exists() and any(pieces.iterdir()):
        sys.exit(f"error: {pieces} is not empty; name a new folder")
    pieces.mkdir(parents=True, exist_ok=True)
    splitter = Splitter(pieces, mib << 20)
    with tarfile.open(fileobj=splitter, mode="w|") as archive:
        archive.add(folder, arcname=".")
    splitter.finish()
    (pieces / INDEX).write_text(json.dumps(splitter.pieces, indent=1) + "\n")
    return splitter.pieces


def take(carried: Path, kept: Path) -> list[str]:
    """Keeps the pieces of a folder and their index; gives the names of those that are still to come.

    A piece is taken only whole, and only if the index, here or there, knows it.
    """
    index = next((json.loads((at / INDEX).read_text()) for at in (carried, kept) if (at / INDEX).is_file()), None)
    if index is None:
        sys.exit(f"error: no {INDEX} in {carried}; carry it with every piece")
    known, here = {piece["name"]: piece for piece in index}, sorted(carried.glob("piece.*"))
    wrong = [path.name for path in here if path.name not in known or not _whole(path, known[path.name])]
    if wrong:
        sys.exit(f"error: altered, or of another index: {', '.join(wrong)}; carry them again")
    kept.mkdir(parents=True, exist_ok=True)
    (kept / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    for path in here:
        shutil.copy(path, kept / path.name)
    return [name for name, piece in known.items() if not _whole(kept / name, piece)]


def join(pieces: Path, folder: Path) -> None:
    """Makes the folder, which must not exist, from pieces that are all there and whole."""
    if folder.exists():
        sys.exit(f"error: {folder} exists; name a new folder")
    if not (pieces / INDEX).is_file():
        sys.exit(f"error: no {INDEX} in {pieces}")
    index = json.loads((pieces / INDEX).read_text())
    wrong = [piece["name"] for piece in index if not _whole(pieces / piece["name"], piece)]
    if wrong:
        sys.exit(f"error: missing or altered: {', '.join(wrong)}; copy them again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        stream = io.BufferedReader(Joiner([pieces / piece["name"] for piece in index]), 1 << 20)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(draft / folder.name, filter="data")
        (draft / folder.name).rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _whole(path: Path, piece: dict[str, str | int]) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == piece["sha256"]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["split", "take", "join"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--mib", type=int, default=52, help="largest piece")
    given = parser.parse_args()
    if given.what == "split":
        made = split(given.source, given.target, given.mib)
        print(f"{len(made)} pieces, {sum(int(piece['size']) for piece in made) / 2**20:.1f} MiB in {given.target}")
    elif given.what == "take":
        lacking = take(given.source, given.target)
        print(f"still to come: {', '.join(lacking)}" if lacking else f"every piece is in {given.target}")
    else:
        join(given.source, given.target)
        print(given.target)


if __name__ == "__main__":
    main()
