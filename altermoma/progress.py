"""Progress on stderr: bars on a terminal, sparse plain lines elsewhere.

Whatever is under way is drawn by a thread of its own: a long first item shows, and so does work without items.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

PATIENCE_S = 2.0
REDRAW_S = 0.5
"""Seldom: the drawing takes time from what is being measured, where latencies are."""
LOG_EVERY_S = 15.0


def first_process() -> bool:
    """Whether this is the one of several processes, started by torchrun, that speaks for all; true without it."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One plain line for the user, above the bars; of several processes all but the first say who they are."""
    text = text if first_process() else f"process {os.environ['RANK']}: {text}"
    _board.console().print(text, markup=False, highlight=False)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items of `iterable`; once that has taken two seconds, progress is shown."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with _board.showing(description, total) as job:
        for done, item in enumerate(iterable, start=1):
            yield item
            job.done = done


@contextmanager
def counted(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Work whose items another library counts: call what is given with the number that is done."""
    with _board.showing(description, total) as job:

        def tell(done: int) -> None:
            job.done = done

        yield tell


@contextmanager
def busy(description: str) -> Iterator[None]:
    """Work that has no items to count; once it has taken two seconds, it is shown."""
    with _board.showing(description, None):
        yield


@dataclass(kw_only=True, eq=False)
class _Job:
    description: str
    total: int | None
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    task: TaskID | None = None

    def count(self) -> str:
        return f"{self.done}/{self.total}" if self.total else f"{self.done}" if self.done else ""

    def line(self, now: float) -> str:
        done = f"{self.done}{f' of {self.total}' if self.total else ''}, " if self.total or self.done else ""
        return f"{self.description}: {done}{now - self.started:.0f} s"


class _Board:
    """Everything under way, the outermost first, and the thread that draws it while there is anything."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._bars: Progress | None = None
        self._console: Console | None = None

    def console(self) -> Console:
        """The terminal as it was when the work began: meanwhile a library's chatter may be sent elsewhere."""
        return self._console or Console(file=sys.stderr, soft_wrap=True)

    @contextmanager
    def showing(self, description: str, total: int | None) -> Iterator[_Job]:
        job = _Job(description=description, total=total)
        if not first_process():
            yield job
            return
        with self._changed:
            self._jobs.append(job)
            if self._console is None:
                self._console = self.console()
                threading.Thread(target=self._draw, args=(self._console,), name="progress", daemon=True).start()
        try:
            yield job
        finally:
            with self._changed:
                self._jobs.remove(job)
                if self._bars is not None and job.task is not None:
                    self._bars.remove_task(job.task)
                if not self._jobs:
                    self._close()

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._console = None
        self._changed.notify_all()

    def _draw(self, console: Console) -> None:
        """Draws until the last job is done, which takes the console away."""
        said = time.monotonic()
        with self._changed:
            while self._console is console:
                now = time.monotonic()
                if console.is_terminal:
                    self._redraw(console, now)
                elif now - said >= LOG_EVERY_S:
                    said = now
                    say(self._jobs[-1].line(now))
                self._changed.wait(REDRAW_S if console.is_terminal else said + LOG_EVERY_S - now)

    def _redraw(self, console: Console, now: float) -> None:
        for job in self._jobs:
            if job.task is None and now - job.started >= PATIENCE_S:
                self._bars = self._bars or _started_bars(console)
                job.task = self._bars.add_task(job.description, total=job.total, count="")
            if job.task is not None and self._bars is not None:
                self._bars.update(job.task, completed=job.done, count=job.count())
        if self._bars is not None:
            self._bars.refresh()


def _started_bars(console: Console) -> Progress:
    bars = Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bars.start()
    return bars


_board = _Board()
# A forked process has none of the threads, and perhaps a lock that one of them held.
os.register_at_fork(after_in_child=_board.__init__)  # type: ignore[misc]
