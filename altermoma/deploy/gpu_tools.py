"""What `gpu_check` does with the vendor's tools: engines beside ONNX Runtime, and the commands of a bundle's README."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.cross_check import cross_check
from altermoma.deploy.pipeline import open_stages
from altermoma.deploy.readme import commands_of
from altermoma.deploy.reference import Reference
from altermoma.deploy.tensorrt_backend import open_engines
from altermoma.deploy.vendor_commands import FEED_FILE

SMALL_BYTES = 64 << 20
"""Larger graphs are left out: fp16 on a CPU takes its time, and what these steps ask does not depend on size."""

VENDOR_STAGES = ("camera", "lidar")
"""One of fixed shapes, one with a profile: each command builds an engine."""

Record = dict[str, Any]


def left_out(bundle: Bundle, precision: str, *modules: str) -> str:
    """Why a bundle's precision is not given to the tools; "" if it is."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    if lacking:
        return f"not run: {', '.join(lacking)} is not installed"
    size = sum(bundle.manifest.files[record.file].size for record in bundle.stages(precision).values())
    return "not run: only for small bundles" if size > SMALL_BYTES else ""


def check_cross(bundle: Bundle, reference: Reference, precision: str) -> tuple[Record, str]:
    """Every engine against ONNX Runtime on the same graph, by polygraphy's Comparator where that is installed.

    Returns:
        What was found, and what is wrong with it, if anything.
    """
    others = open_stages(bundle, "onnxruntime", precision, threads=os.cpu_count() or 1)
    allowed = bundle.manifest.tolerances[precision]
    checks = cross_check(precision, open_engines(bundle, precision), others, reference, allowed)
    found: Record = {"judges": sorted({check.judge for check in checks}), "cross": [*map(dataclasses.asdict, checks)]}
    beyond = [f"{c.stage}.{c.tensor} by {c.difference:.1e}" for c in checks if not c.passed]
    return found, f"engines and ONNX Runtime differ: {', '.join(beyond)}" if beyond else ""


def check_vendor(bundle: Bundle, reference: Reference, precision: str, major: int) -> tuple[Record, str]:
    """The README's commands for polygraphy with TensorRT, as they stand: they build, run and judge by themselves.

    Args:
        bundle: its folder gains files under engines/.
        reference: gives the limits that the README states.
        precision: one of the bundle's.
        major: version of TensorRT.

    Returns:
        The commands by stage with how they ended, and what is wrong, if anything.
    """
    told = {"feed": run_tool([FEED_FILE], bundle.folder)}
    for name in VENDOR_STAGES:
        record = bundle.stages(precision)[name]
        command = commands_of(bundle.manifest, reference, precision, record).polygraphy(major)
        words = shlex.split(command)
        told[command] = run_tool(["-c", _POLYGRAPHY, *words[1:]], bundle.folder)
    wrong = [f"{command}: {how}" for command, how in told.items() if how]
    return {"commands": told}, "; ".join(wrong)


_POLYGRAPHY = "import sys; from polygraphy.tools import main; sys.exit(main())"
"""What the command `polygraphy` is; packed Pythons have no commands."""


def run_tool(arguments: list[str], folder: Path) -> str:
    """Python with arguments, in a folder; the end of its output if it failed, else "".

    Where the caller has a limit of time, it ends this process with itself, being of its process group.
    """
    environment = {**os.environ, "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    said = " ".join((done.stdout + done.stderr).split()[-60:])
    return "" if done.returncode == 0 else f"ended with code {done.returncode}: {said}"
