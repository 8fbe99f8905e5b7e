"""Progress on stderr: bars on a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

PATIENCE_S = 2.0
LOG_EVERY_S = 15.0


def say(text: str) -> None:
    """One plain line for the user."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items of `iterable`; once that has taken two seconds, progress is shown."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from _track_bar(iterable, description, total)
    else:
        yield from _track_lines(iterable, description, total)


def _track_bar(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    bar: Progress | None = None
    try:
        for done, item in enumerate(iterable, start=1):
            yield item
            if bar is None and time.monotonic() - started > PATIENCE_S:
                bar = Progress(*columns, console=Console(stderr=True))
                bar.start()
                task = bar.add_task(description, total=total)
            if bar is not None:
                bar.update(task, completed=done)
    finally:
        if bar is not None:
            bar.stop()


def _track_lines(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    started = last = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - last > LOG_EVERY_S:
            last = now
            say(f"{description}: {done}{f' of {total}' if total else ''}, {now - started:.0f} s")
