"""Everything that a GPU machine without network needs beside TensorRT, for its Python: gathered here, unpacked there.

    python scripts/gpu_wheels.py gather wheels --python 3.11            # where there is a package index
    python scripts/gpu_wheels.py gather few --python 3.12 --only tomli-w    # for a Python that has the others
    python scripts/gpu_wheels.py unpack wheels site                     # on the GPU machine; needs nothing but Python
    PYTHONPATH=site:$PYTHONPATH python scripts/gpu_check.py ...

`gather` builds this project's wheel and downloads those of its dependencies and of NVRTC, without those that the
machine has (--without numpy, or altermoma where a checkout is), or none but those that are named (--only). `unpack`
takes no pip, which stripped-down Pythons lack. Both need only Python itself (and `gather` pip, and hatchling to build).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
NVRTC = "nvidia-cuda-nvrtc-cu12"
PROJECT = "altermoma"

PLATFORMS = {
    "x86_64": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "aarch64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
}


def requirements(version: str) -> list[str]:
    """The dependencies in pyproject.toml for a Python, as "3.10"."""
    found = re.search(r"^dependencies = \[(.*)\]$", (REPO / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        sys.exit("error: pyproject.toml has no line of dependencies")
    stated = [text.partition(";") for text in re.findall(r'"([^"]+)"', found[1])]
    return [name for name, _, marker in stated if _holds(marker.strip(), version)]


def _holds(marker: str, version: str) -> bool:
    if not marker:
        return True
    below = re.fullmatch(r"python_version < '([\d.]+)'", marker)
    if not below:
        sys.exit(
            f"error: pyproject.toml asks for a dependency where {marker}; only python_version < '...' is read here"
        )
    return _numbers(version) < _numbers(below[1])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def download_command(out: Path, version: str, machine: str, wanted: Sequence[str]) -> list[str]:
    """The command that downloads wheels for another Python."""
    platforms = [item for name in PLATFORMS[machine] for item in ("--platform", name)]
    target = ["--python-version", version, "--implementation", "cp", "--only-binary=:all:", *platforms]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    return [*command, "-d", str(out), "-c", str(REPO / "constraints.txt"), *target, *wanted]


def gather(out: Path, version: str, machine: str, without: Sequence[str]) -> list[Path]:
    """Fills the folder; gives the wheels in it."""
    out.mkdir(parents=True, exist_ok=True)
    if PROJECT not in without:
        _build(out)
    wanted = [text for text in (*requirements(version), NVRTC) if re.split("[<>=]", text)[0] not in without]
    subprocess.run(download_command(out, version, machine, wanted), check=True)
    for wheel in sorted(out.glob("*.whl")):
        if _project(wheel) in without:
            wheel.unlink()
    return sorted(out.glob("*.whl"))


def _build(out: Path) -> None:
    build = f"from hatchling.build import build_wheel; build_wheel({str(out.resolve())!r})"
    subprocess.run([sys.executable, "-c", build], cwd=REPO, check=True, stdout=subprocess.DEVNULL)


def unpack(wheels: Path, site: Path) -> list[Path]:
    """Unpacks every wheel into a folder for PYTHONPATH; gives the wheels."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        sys.exit(f"error: no wheels in {wheels}")
    site.mkdir(parents=True, exist_ok=True)
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            broken = archive.testzip()
            if broken:
                sys.exit(f"error: {wheel.name} is damaged at {broken}; copy it again")
            archive.extractall(site)
    return found


def gather_only(out: Path, version: str, machine: str, only: Sequence[str]) -> list[Path]:
    """Downloads the named wheels, and nothing that they depend on."""
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run([*download_command(out, version, machine, only), "--no-deps"], check=True)
    return sorted(out.glob("*.whl"))


def _project(wheel: Path) -> str:
    return wheel.name.partition("-")[0].lower().replace("_", "-")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["gather", "unpack"])
    parser.add_argument("wheels", type=Path)
    parser.add_argument("site", type=Path, nargs="?", help="of unpack: a folder for PYTHONPATH")
    parser.add_argument("--python", default="3.11", help="of gather: version on the GPU machine")
    parser.add_argument("--machine", default="x86_64", choices=sorted(PLATFORMS), help="of gather")
    parser.add_argument("--without", action="append", default=[], help="of gather: a project that is there; repeatable")
    parser.add_argument("--only", action="append", default=[], help="of gather: this project alone; repeatable")
    given = parser.parse_args()
    if given.what == "gather" and given.only:
        found = gather_only(given.wheels, given.python, given.machine, given.only)
    elif given.what == "gather":
        found = gather(given.wheels, given.python, given.machine, given.without)
    elif given.site is None:
        parser.error("unpack needs a folder to unpack into")
    else:
        found = unpack(given.wheels, given.site)
    size = sum(wheel.stat().st_size for wheel in found) / 2**20
    print(f"{len(found)} wheels, {size:.1f} MiB: {', '.join(map(_project, found))}")


if __name__ == "__main__":
    main()
