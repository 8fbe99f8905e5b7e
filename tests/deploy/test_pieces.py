"""A folder cut into pieces and joined again: all of it, or an error that names what is wrong."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pieces.py"


def pieces(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """Without site packages: it must run on a bare machine."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "large").write_bytes(np.random.default_rng(0).bytes((5 << 19) + 7))
    (folder / "empty").write_bytes(b"")
    done = pieces("split", folder, tmp_path / "pieces", "--mib", "1")
    assert done.returncode == 0, done.stderr
    return tmp_path / "pieces"


def test_joined_is_what_was_split(cut: Path, tmp_path: Path) -> None:
    files = sorted(cut.glob("piece.*"))
    assert [path.name for path in files] == ["piece.000", "piece.001", "piece.002"]
    assert max(path.stat().st_size for path in files) <= 1 << 20
    assert pieces("join", cut, tmp_path / "again").returncode == 0
    found = filecmp.dircmp(tmp_path / "folder", tmp_path / "again")
    assert not found.left_only + found.right_only
    for name in ("below/large", "empty"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()


def test_missing_and_altered_pieces_are_named(cut: Path, tmp_path: Path) -> None:
    (cut / "piece.000").unlink()
    block = bytearray((cut / "piece.002").read_bytes())
    block[5] ^= 1
    (cut / "piece.002").write_bytes(block)
    done = pieces("join", cut, tmp_path / "again")
    assert done.returncode == 1
    assert "missing or altered: piece.000, piece.002" in done.stderr
    assert not (tmp_path / "again").exists()
    assert "not empty" in pieces("split", tmp_path / "folder", cut).stderr


def test_pieces_that_arrive_one_at_a_time_in_any_order(cut: Path, tmp_path: Path) -> None:
    """Each comes in a folder that the next one replaces; what is altered on the way is not kept."""
    kept, told = tmp_path / "kept", []
    for name in ("piece.002", "piece.000", "piece.001"):
        carried = tmp_path / f"carried-{name}"
        carried.mkdir()
        shutil.copy(cut / "index.json", carried)
        (carried / name).write_bytes((cut / name).read_bytes()[:-1])
        done = pieces("take", carried, kept)
        assert done.returncode == 1
        assert f"altered, or of another index: {name}" in done.stderr
        shutil.copy(cut / name, carried)
        done = pieces("take", carried, kept)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.strip())
    lacking = "still to come: piece.000, piece.001"
    assert told == [lacking, "still to come: piece.001", f"every piece is in {kept}"]
    assert pieces("join", kept, tmp_path / "again").returncode == 0
    assert (tmp_path / "again" / "below" / "large").read_bytes() == (tmp_path / "folder/below/large").read_bytes()
    assert "no index.json" in pieces("take", tmp_path / "folder", tmp_path / "new").stderr
