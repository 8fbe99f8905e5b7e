"""Files are whole or absent, and a place that cannot be written says so."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from altermoma.errors import StorageError
from altermoma.storage import atomic_path, content_key, read_json, sha256_of, write_json, write_text


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def interrupted() -> None:
        with atomic_path(target) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == ["a.txt"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with atomic_path(tmp_path / "bundle") as draft:
            draft.mkdir()
            (draft / text).write_text(text)
    assert leftovers(tmp_path / "bundle") == ["second"]
    assert leftovers(tmp_path) == ["bundle"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_place_that_cannot_be_written_says_what_to_do(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageError, match="What to do"), atomic_path(tmp_path / "a"):
        raise OSError(number, "simulated")


def test_a_parent_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="folders"):
        write_text(tmp_path / "file" / "a.txt", "text")


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None]}
    (tmp_path / "a.json").write_text('{"b": [1,')
    with pytest.raises(StorageError, match="not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StorageError, match="no file"):
        read_json(tmp_path / "missing.json")


def test_keys_depend_on_content_not_on_order(tmp_path: Path) -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) != content_key({"a": 1, "b": 3})
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "empty").startswith("e3b0c44298fc1c14")
