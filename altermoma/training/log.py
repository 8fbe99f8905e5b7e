"""The JSON-lines log of a training run: one line a step, cut back to the resumed step after a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TextIO

from altermoma.storage import storage_errors, write_text

LOG_FILE = "training_log.jsonl"


def open_log(path: Path, done: int) -> TextIO:
    """Opens the log for appending after keeping the lines of the first `done` steps."""
    kept = [line for line in read_log(path) if line["step"] < done]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    with storage_errors(path):
        return path.open("a", encoding="utf-8")


def append(stream: TextIO, path: Path, line: dict[str, float]) -> None:
    """Writes one line; figures that are not finite become null, which JSON can hold."""
    clean = {k: (v if math.isfinite(v) else None) for k, v in line.items()}
    with storage_errors(path):
        stream.write(json.dumps(clean) + "\n")
        stream.flush()


def read_log(path: Path) -> list[dict[str, float]]:
    """Lines of a log in order; a last line cut short by a kill is left out. An absent log has no lines."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
