"""Whatever takes long shows, on a terminal and in a log, from its first item on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest

from altermoma import progress

SCRIPT = """
import time
from altermoma import progress
progress.PATIENCE_S, progress.REDRAW_S = 0.2, 0.05
with progress.busy("Outer work"):
    for item in progress.track(range(2), "Inner items"):
        time.sleep(0.6)
        progress.say(f"a line after item {item}")
for _ in progress.track(iter("ab"), "Too quick to show"):
    pass
"""


def on_a_terminal(script: str) -> str:
    """What a script writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


def test_a_long_first_item_and_work_without_items_show_on_a_terminal() -> None:
    shown = on_a_terminal(SCRIPT)
    before = shown[: shown.index("a line after item 0")]
    assert "Outer work" in before
    assert "Inner items" in before
    assert "0/2" in before
    assert "1/2" in shown
    assert "Too quick" not in shown


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.1)
    with progress.busy("Outer work"):
        for _ in progress.track(range(2), "Inner items"):
            time.sleep(0.25)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Inner items: 0 of 2, ")
    assert any(line.startswith("Inner items: 1 of 2, ") for line in lines)
    assert 3 <= len(lines) <= 5


def test_nothing_is_left_after_an_error() -> None:
    items = progress.track([1], "Items")
    next(items)
    with pytest.raises(ValueError, match="on purpose"), progress.busy("Outer work"):
        items.throw(ValueError("on purpose"))  # type: ignore[attr-defined]
    assert progress._board._jobs == []
