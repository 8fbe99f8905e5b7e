"""Processes of the GPU check: results outlive a crash at the end, children end with their parent, one at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from gpu_machine import Machine
from script_module import SCRIPTS
from tensorrt_double import VERSIONS

from altermoma.deploy import gpu_process
from altermoma.deploy.bundle import Bundle
from altermoma.errors import EngineError

CRASH = "its process crashed: SIGSEGV"
DOUBLE = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


@DOUBLE
def test_a_crash_at_the_end_takes_nothing_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorRT's unloading may do in both kinds of processes: everything was on file before."""
    machine.bundle("dense")
    child = machine.child
    monkeypatch.setattr(machine, "child", lambda *arguments: child(*arguments) or CRASH)
    result = machine.run()
    assert result["failures"] == []
    assert result["variants"]["dense-fp32"]["status"] == "passed"
    assert result["benchmarks"]["toy"]["variants"]["dense-fp32"]["latency_ms"]["frame"]["p50"] > 0
    page = (machine.out / "result.md").read_text()
    assert f"- dense-fp32: everything was done, then {CRASH}" in page
    assert f"- benchmark of toy: everything was done, then {CRASH}" in page
    before = machine.builds(), (machine.out / "bench-toy.json").stat().st_mtime_ns
    monkeypatch.setattr(machine, "child", child)
    again = machine.run()
    assert (machine.builds(), (machine.out / "bench-toy.json").stat().st_mtime_ns) == before
    assert "ended" not in again["variants"]["dense-fp32"]


@DOUBLE
def test_a_process_that_dies_before_it_begins_is_a_failure_of_now(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on file from before, maybe of another TensorRT, does not count for it."""
    machine.bundle("dense")
    assert machine.run()["failures"] == []
    monkeypatch.setattr(machine, "child", lambda *_: CRASH)
    result = machine.run()
    assert result["variants"]["dense-fp32"]["status"] == "failed"
    assert CRASH in result["failures"][0]


def test_a_program_ends_without_unloading_anything() -> None:
    """The exit code is the script's, whatever would crash after it."""
    code = "import atexit, os, runpy, signal, sys\n"
    code += "atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))\n"
    code += f"sys.argv = ['gpu_check.py', '/nowhere', '--out', '/nowhere/out']; sys.path.insert(0, {str(SCRIPTS)!r})\n"
    code += f"runpy.run_path({str(SCRIPTS / 'gpu_check.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "no bundle and holds none" in done.stderr
    assert done.returncode > 0


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [("print('said')", 0, "said"), ("sys.exit(75)", 75, ""), ("sys.exit('why')", 1, "why"), ("1 / 0", 1, "ZeroDiv")],
)
def test_exit_codes_and_output_are_those_of_the_program(body: str, code: int, said: str) -> None:
    program = f"import sys\nfrom altermoma.deploy.gpu_process import run_and_leave\nrun_and_leave(lambda: {body})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed so hard that it cannot say so; the folder is free again afterwards, and not before."""
    (tmp_path / "child.py").write_text(
        "import os, pathlib, time\nfrom altermoma.deploy.gpu_process import run_and_leave\n"
        f"told = pathlib.Path({str(tmp_path / 'pid')!r})\n"
        "run_and_leave(lambda: (told.write_text(str(os.getpid())), time.sleep(60)))\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom pathlib import Path\nfrom altermoma.deploy.gpu_process import hold, run_process\n"
            f"folder = Path({str(tmp_path)!r})\nwith hold([folder]) as held:\n"
            "    run_process([sys.executable, str(folder / 'child.py')], folder / 'log', 60.0, held)\n",
        ]
    )
    pid = _wait_for(tmp_path / "pid")
    try:
        with pytest.raises(EngineError, match="another check is at work"), gpu_process.hold([tmp_path], 0.0):
            pass
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        with gpu_process.hold([tmp_path], 20.0):
            assert not _runs(pid)
    finally:
        if _runs(pid):
            os.kill(pid, signal.SIGKILL)
        parent.kill()


def _wait_for(file: Path) -> int:
    for _ in range(300):
        if file.is_file() and file.read_text():
            return int(file.read_text())
        time.sleep(0.1)
    raise TimeoutError(f"no {file}")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


@DOUBLE
def test_two_checks_do_not_run_on_one_bundle(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with folders of results of their own: both would write engines and the manifest."""
    folder = machine.bundle("dense")
    with gpu_process.hold([folder, folder], 0.0):
        with pytest.raises(EngineError, match="another check is at work on"), gpu_process.hold([folder], 0.0):
            pass
        assert Bundle.open(folder).manifest.name == "toy", "nothing lies in a bundle that is taken"
        monkeypatch.setattr(machine.script, "hold", lambda folders: gpu_process.hold(folders, 0.0))
        with pytest.raises(EngineError, match="another check is at work on"):
            machine.script.main(bundles=[folder], out=machine.out)
    assert machine.builds() == 0

    def run_child(arguments: list[str], log: Path, timeout: float, held: list[int]) -> str:
        assert len(held) == 2
        return machine.child(arguments, log, timeout)

    monkeypatch.setattr(machine.script, "run_here", run_child)
    with pytest.raises(typer.Exit):
        machine.script.main(bundles=[folder], out=machine.out, bench_seconds=0.05, threads=1)
    assert json.loads((machine.out / "result.json").read_text())["failures"] == []
