"""Clocks, power, temperature and memory of the GPU by nvidia-smi, where it is there; nowhere an error."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
    "utilization.gpu": "utilization_percent",
    "memory.used": "memory_used_mib",
}
"""What is sampled, by nvidia-smi's name."""

STATIC = (
    "name",
    "driver_version",
    "memory.total",
    "power.limit",
    "clocks.max.sm",
    "persistence_mode",
    "mig.mode.current",
)
COMMAND = "nvidia-smi"
PERIOD_MS = 500
PATIENCE_S = 10


def machine() -> dict[str, Any]:
    """System, Python, and what nvidia-smi says of the first GPU that does not change; "" where it is not there."""
    record: dict[str, Any] = {"system": platform.platform(), "python": platform.python_version()}
    command = [COMMAND, f"--query-gpu={','.join(STATIC)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return record
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode == 0 and len(values) == len(STATIC):
        record["gpu"] = dict(zip(STATIC, values, strict=True))
    return record


@contextlib.contextmanager
def sampled(record: dict[str, Any]) -> Iterator[None]:
    """Samples the first GPU twice a second; afterwards `record` holds min, median and max of what could be read.

    One nvidia-smi runs beside the work, so that the work itself starts no processes.
    """
    command = [COMMAND, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", "--id=0"]
    with tempfile.TemporaryFile("w+") as lines:
        try:
            process = subprocess.Popen(
                [*command, f"--loop-ms={PERIOD_MS}"], stdout=lines, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
            )
        except OSError:
            process = None
        try:
            yield
        finally:
            if process is not None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE_S)
            lines.seek(0)
            record.update(summarise(lines.read()))


def summarise(lines: str) -> dict[str, Any]:
    """Lines of nvidia-smi to {name: {min, median, max}}; fields that this GPU does not tell are left out."""
    columns: dict[str, list[float]] = {name: [] for name in FIELDS.values()}
    for line in lines.splitlines():
        cells = line.split(",")
        if len(cells) != len(FIELDS):
            continue
        for name, cell in zip(columns, cells, strict=True):
            with contextlib.suppress(ValueError):
                columns[name].append(float(cell))
    return {
        name: {"min": min(values), "median": float(np.median(values)), "max": max(values)}
        for name, values in columns.items()
        if values
    }
