"""Run folders: unfinished ones are continued, foreign ones are left alone, two processes never share one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from altermoma.errors import RecipeError, StorageError
from altermoma.recipe import Recipe
from altermoma.storage import write_json
from altermoma.workflow.runs import open_run, recipe_of

RECIPE = Recipe(name="half")


def test_a_new_run_is_named_after_recipe_and_time(tmp_path: Path) -> None:
    with open_run(RECIPE, "key", None, tmp_path) as run:
        assert run.path.parent == tmp_path
        assert run.path.name.startswith("half-2")
    assert recipe_of(run.path) == RECIPE


def test_an_unfinished_run_of_the_same_key_is_continued(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_run(RECIPE, "key", None, tmp_path) as first:
        pass
    with open_run(RECIPE, "key", None, tmp_path) as second:
        assert second.path == first.path
    assert f"continuing the unfinished run in {first.path}" in capfd.readouterr().err.replace("\n", "")


def test_a_finished_or_other_run_is_not_continued(tmp_path: Path) -> None:
    with open_run(RECIPE, "key", None, tmp_path) as finished:
        write_json(finished.summary, {})
    with open_run(RECIPE, "other", None, tmp_path) as other:
        assert other.path != finished.path
    with open_run(RECIPE, "key", None, tmp_path) as fresh:
        assert fresh.path not in {finished.path, other.path}


def test_a_run_that_another_process_works_in_is_not_shared(tmp_path: Path) -> None:
    with open_run(RECIPE, "key", None, tmp_path) as first:
        with open_run(RECIPE, "key", None, tmp_path) as second:
            assert second.path != first.path
        with (
            pytest.raises(StorageError, match="another run works in"),
            open_run(RECIPE, "key", first.path, tmp_path),
        ):
            pass


def test_results_of_another_key_do_not_pass_for_this_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_run(RECIPE, "key", out) as run:
        write_json(run.summary, {})
        run.bundle.mkdir()
    with open_run(RECIPE, "key", out) as again:
        assert again.summary.exists()
        assert again.bundle.exists()
    with open_run(RECIPE, "other", out) as changed:
        assert not changed.summary.exists()
        assert not changed.bundle.exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(StorageError, match="not empty and is no run folder"), open_run(RECIPE, "key", tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.txt"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match="is a file"), open_run(RECIPE, "key", tmp_path / "out"):
        pass
    with pytest.raises(StorageError, match="cannot write"), open_run(RECIPE, "key", tmp_path / "out" / "below"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot write"), open_run(RECIPE, "key", tmp_path / "out"):
        pass


def test_a_read_only_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: int = 0o777) -> None:
        raise OSError(errno.EROFS, "read-only", path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StorageError, match="Read-only file system"), open_run(RECIPE, "key", tmp_path / "out"):
        pass


def test_the_recipe_of_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run folder"):
        recipe_of(tmp_path)
    write_json(tmp_path / "run.json", {"key": "k", "recipe": {"nmae": "x"}})
    with pytest.raises(RecipeError, match="nmae"):
        recipe_of(tmp_path)


def test_a_report_never_replaces_the_results_of_another_version(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_run(RECIPE, "key", out) as run:
        write_json(run.summary, {"mAP": 1})
    with pytest.raises(StorageError, match="another version"), open_run(RECIPE, "newer", out, same_only=True):
        pass
    assert run.summary.exists()


def test_a_damaged_marker_does_not_stop_other_runs(tmp_path: Path) -> None:
    broken = tmp_path / "half-1" / "run.json"
    broken.parent.mkdir()
    broken.write_text("{")
    with open_run(RECIPE, "key", None, tmp_path) as run:
        assert run.path != broken.parent
