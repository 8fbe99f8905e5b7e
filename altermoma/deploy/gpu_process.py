"""Processes of a check on a GPU: one at a time, no child that outlives its parent, no end that undoes the work."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from altermoma.errors import EngineError

TOO_LONG = "it was ended after"

LAZY = "CUDA_MODULE_LOADING"
"""Kernels are loaded as they are used, as CUDA has it from 12.2 on; libraries of earlier versions load all at first."""

PARENT = "ALTERMOMA_CHECK_PARENT"
"""Tells a process who began it."""

PATIENCE_S = 20.0
"""How long a process that was killed may take to give a GPU back."""

_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def hold(folders: Sequence[Path], patience_s: float = PATIENCE_S) -> Iterator[list[int]]:
    """Keeps folders, which exist, for this check alone; they stay taken for as long as a process has the descriptors.

    No file is left in them: a bundle holds nothing that its manifest does not list.

    Raises:
        EngineError: another check has one of them.
    """
    held: list[int] = []
    try:
        for folder in dict.fromkeys(path.resolve() for path in folders):
            held.append(os.open(folder, os.O_RDONLY))
            _lock(held[-1], folder, patience_s)
        yield held
    finally:
        for descriptor in held:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"another check is at work on {folder}",
                    expected="one check at a time on one GPU",
                    remedy="wait for it or end its process, and run the same command again",
                ) from error
            time.sleep(0.1)


def run_process(command: Sequence[str], log: Path, timeout: float, held: Sequence[int] = ()) -> str:
    """A process of its own; with everything that it started, it is ended when the time is over, or with its parent.

    Args:
        command: of a program that ends by `run_and_leave`.
        log: its output is added to this file.
        timeout: seconds.
        held: descriptors of `hold`: what they hold stays taken until this process is gone, too.

    Returns:
        How it ended; "" if well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {LAZY: "LAZY", **os.environ, PARENT: str(os.getpid())}
    with log.open("a") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            pass_fds=tuple(held),
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"{TOO_LONG} {timeout:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code < 0:
        return f"its process crashed: {signal.Signals(-code).name}"
    return f"its process ended with code {code}" if code else ""


def run_and_leave(program: Callable[[], object]) -> None:
    """Runs a program, and ends this process with its exit code without unloading anything.

    TensorRT and CUDA may crash as they are unloaded, in an order that Python does not care for; by then everything is
    on file, and a crash would tell of a failure that there was none.
    """
    end_with_parent()
    code = _code_of(program)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _code_of(program: Callable[[], object]) -> int:
    try:
        program()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return (ended.code & 0xFF) if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # what Python would print on its way out
        traceback.print_exc()
        return 1
    return 0


def end_with_parent() -> None:
    """Has this process killed when the one that began it is: two at once would build on one bundle and one GPU."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        # It was gone before this process asked to go with it.
        os._exit(1)
