"""Steps: done is kept, changed inputs are done again, and a kill anywhere changes nothing."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from altermoma.errors import StorageError
from altermoma.workflow.steps import Record, Records, Step, require_file, run_steps, step_keys


class Calls:
    """Two steps that count how often they run; the second reads the first's file."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def steps(self, *, amount: int = 2, factor: int = 3) -> tuple[Step, ...]:
        def first(folder: Path, _: Records) -> Record:
            self.names.append("first")
            (folder / "value").write_text(str(amount))
            return {"amount": amount}

        def second(folder: Path, records: Records) -> Record:
            self.names.append("second")
            value = int(require_file(folder.parent / "first" / "value").read_text())
            return {"product": value * factor, "seen": records["first"]["amount"]}

        return (
            Step(name="first", title="First", inputs={"amount": amount}, needs=(), run=first),
            Step(name="second", title="Second", inputs={"factor": factor}, needs=("first",), run=second),
        )


def test_a_finished_step_is_not_done_again(tmp_path: Path) -> None:
    calls = Calls()
    once = run_steps(calls.steps(), tmp_path, "code")
    again = run_steps(calls.steps(), tmp_path, "code")
    assert calls.names == ["first", "second"]
    assert again["second"].record == once["second"].record == {"product": 6, "seen": 2}
    assert again["second"].seconds == once["second"].seconds
    assert [once["first"].reused, again["first"].reused] == [False, True]
    assert once["first"].peak_memory_mib > 10


@pytest.mark.parametrize(
    ("change", "redone"),
    [({"factor": 5}, ["second"]), ({"amount": 7}, ["first", "second"])],
    ids=["own input", "input of a step it needs"],
)
def test_changed_inputs_are_done_again(tmp_path: Path, change: dict[str, int], redone: list[str]) -> None:
    calls = Calls()
    run_steps(calls.steps(), tmp_path, "code")
    calls.names.clear()
    run_steps(calls.steps(**change), tmp_path, "code")
    assert calls.names == redone


def test_other_code_does_everything_again(tmp_path: Path) -> None:
    calls = Calls()
    run_steps(calls.steps(), tmp_path, "code")
    run_steps(calls.steps(), tmp_path, "other code")
    assert calls.names == ["first", "second"] * 2


def test_keys_do_not_depend_on_where_or_when(tmp_path: Path) -> None:
    assert step_keys(Calls().steps(), "code") == step_keys(Calls().steps(), "code")


def _interrupted(at: int) -> Callable[[Path, Records], Record]:
    """A step of three parts that keeps partial state and is stopped after `at` of them, once."""

    def run(folder: Path, _: Records) -> Record:
        state = folder / "state"
        while (done := len(state.read_text()) if state.exists() else 0) < 3:
            if done == at and not (folder / "stopped").exists():
                (folder / "stopped").touch()
                raise KeyboardInterrupt
            state.write_text("x" * (done + 1))
        return {"parts": len(state.read_text())}

    return run


@pytest.mark.parametrize("at", [0, 1, 2])
def test_partial_state_of_the_same_step_is_continued(tmp_path: Path, at: int) -> None:
    step = Step(name="s", title="S", inputs={}, needs=(), run=_interrupted(at))
    with pytest.raises(KeyboardInterrupt):
        run_steps((step,), tmp_path, "code")
    assert not (tmp_path / "s" / "done.json").exists()
    assert len((tmp_path / "s" / "state").read_text()) == at if at else not (tmp_path / "s" / "state").exists()
    assert run_steps((step,), tmp_path, "code")["s"].record == {"parts": 3}


def test_partial_state_of_another_step_is_removed(tmp_path: Path) -> None:
    stopped = Step(name="s", title="S", inputs={}, needs=(), run=_interrupted(2))
    with pytest.raises(KeyboardInterrupt):
        run_steps((stopped,), tmp_path, "code")

    def run(folder: Path, _: Records) -> Record:
        return {"found": sorted(path.name for path in folder.iterdir())}

    other = Step(name="s", title="S", inputs={"other": 1}, needs=(), run=run)
    assert run_steps((other,), tmp_path, "code")["s"].record == {"found": ["started.json"]}


def test_a_full_disk_in_a_step_says_so(tmp_path: Path) -> None:
    def full(_: Path, __: Records) -> Record:
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(StorageError, match="No space left"):
        run_steps((Step(name="s", title="S", inputs={}, needs=(), run=full),), tmp_path, "code")
    assert not (tmp_path / "s" / "done.json").exists()


def test_a_file_that_someone_removed_is_named(tmp_path: Path) -> None:
    calls = Calls()
    steps = calls.steps()
    run_steps(steps[:1], tmp_path, "code")
    (tmp_path / "first" / "value").unlink()
    with pytest.raises(StorageError, match="value is gone"):
        run_steps(steps, tmp_path, "code")


SCRIPT = """
    import json, sys, time
    from pathlib import Path
    from altermoma.workflow.steps import Step, run_steps

    def make(name, needs):
        def run(folder, records):
            total = 1 + sum(records[n]["total"] for n in needs)
            for part in range(5):
                time.sleep(0.02)
                (folder / f"part{part}").write_text(str(total))
            return {"total": sum(int(p.read_text()) for p in sorted(folder.glob("part*")))}
        return Step(name=name, title=name, inputs={"n": name}, needs=needs, run=run)

    steps = (make("a", ()), make("b", ("a",)), make("c", ("a", "b")))
    results = run_steps(steps, Path(sys.argv[1]), "code")
    print(json.dumps({name: [r.key, r.record] for name, r in results.items()}))
"""


def _start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _result(folder: Path) -> Any:
    process = _start(folder)
    out, _ = process.communicate(timeout=60)
    return json.loads(out)


def test_killed_at_any_moment_the_result_is_the_same(tmp_path: Path) -> None:
    expected = _result(tmp_path / "whole")
    for index in range(4):
        folder = tmp_path / f"killed{index}"
        process = _start(folder)
        started = folder / "abc"[min(index, 2)] / "started.json"
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.015 * index)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert _result(folder) == expected


def test_a_kill_while_an_old_step_is_removed_leaves_nothing_that_looks_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    run_steps(calls.steps(), tmp_path, "code")

    def killed(_path: Path) -> None:
        (tmp_path / "first" / "value").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("altermoma.workflow.steps.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_steps(calls.steps(amount=5), tmp_path, "code")
    again = run_steps(calls.steps(), tmp_path, "code")
    assert again["second"].record == {"product": 6, "seen": 2}


def test_a_file_that_cannot_be_read_is_not_called_a_full_disk(tmp_path: Path) -> None:
    def reads(_folder: Path, _: Records) -> Record:
        raise PermissionError(errno.EACCES, "no", "sensor.bin")

    step = Step(name="reads", title="Reads", inputs=0, needs=(), run=reads)
    with pytest.raises(PermissionError):
        run_steps((step,), tmp_path, "code")
