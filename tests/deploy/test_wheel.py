"""What a vehicle gets: the wheel with its deploy extra in an environment of its own, where torch is not."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from altermoma.deploy.bundle import Bundle

REPO = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "torchvision", "scipy", "matplotlib", "nuscenes")
OFFLINE = ("NewConnectionError", "name resolution", "Network is unreachable")

CHECK = f"""
import importlib.util, sys
import altermoma
assert altermoma.__file__.startswith(sys.prefix), altermoma.__file__
assert not [name for name in {ABSENT!r} if importlib.util.find_spec(name)]
from altermoma.deploy.nvrtc import NAMES, source_of
assert all("KERNEL" in source_of(name) for name in NAMES)
from altermoma.deploy.self_check import check_bundle
checked = check_bundle(sys.argv[1]).require()
print(len(checked.tensors), len(checked.frames), sum(frame.matched for frame in checked.frames))
from altermoma.deploy import Pipeline
from altermoma.deploy.reference import read_reference
from pathlib import Path
of = read_reference(Path(sys.argv[1]))
print(len(Pipeline.from_bundle(sys.argv[1], precision="fp32")(of.images_vhw3, of.points_p5, of.calibration).boxes))
"""


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Without the checkout on the path."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_bundle_runs_where_only_the_deploy_extra_is_installed(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = run(sys.executable, "-c", code, cwd=REPO)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    python = str(binaries / "python")
    wanted = ["-q", "--disable-pip-version-check", "-c", str(REPO / "constraints.txt"), f"{wheel}[deploy]"]
    done = run(python, "-m", "pip", "install", *wanted, cwd=tmp_path)
    if done.returncode and any(sign in done.stderr for sign in OFFLINE):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr

    done = run(python, "-c", CHECK, str(bundle.folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tensors, frames, matched), (boxes,) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (tensors, frames) == (26, 2)
    assert matched > 0
    assert boxes >= matched / 2

    done = run(str(binaries / "altermoma"), "bench", str(bundle.folder), "--rounds", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| frame |" in done.stdout

    script = str(REPO / "scripts" / "gpu_check.py")
    done = run(python, script, str(bundle.folder), "--out", str(tmp_path / "gpu"), cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 3
    assert "nothing can be checked here: " in done.stderr
    assert "NVIDIA" in done.stderr or "tensorrt cannot be imported" in done.stderr
    assert not (tmp_path / "gpu").exists()
