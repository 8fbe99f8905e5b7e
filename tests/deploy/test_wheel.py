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
ABSENT = ("torch", "torchvision", "onnx", "polygraphy", "safetensors", "scipy", "matplotlib", "nuscenes")
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


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where python and altermoma of a fresh environment are, with the wheel and its deploy extra alone."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(place)!r}))"
    done = run(sys.executable, "-c", code, cwd=REPO)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    venv.create(place / "venv", with_pip=True)
    found = place / "venv" / "bin"
    wanted = ["-q", "--disable-pip-version-check", "-c", str(REPO / "constraints.txt"), f"{wheel}[deploy]"]
    done = run(str(found / "python"), "-m", "pip", "install", *wanted, cwd=place)
    if done.returncode and any(sign in done.stderr for sign in OFFLINE):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return found


@pytest.mark.slow
def test_a_bundle_runs_where_only_the_deploy_extra_is_installed(bundle: Bundle, binaries: Path, tmp_path: Path) -> None:
    python = str(binaries / "python")
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


REAL_FRAME = """
import sys
from pathlib import Path
import numpy as np
from altermoma.deploy import Bundle, Pipeline
from altermoma.deploy.self_check import check_bundle

bundle = Bundle.open(Path(sys.argv[1]))
(checked,) = check_bundle(bundle).require().frames
reference = bundle.reference()
pipeline = Pipeline.from_bundle(bundle, "onnxruntime", precision="fp32")
found = pipeline(reference.images_vhw3, reference.points_p5, reference.calibration)
assert not found.warnings, found.warnings
assert "torch" not in sys.modules
wanted, got = reference.boxes, found.boxes
assert len(wanted) == len(got) and (wanted.labels_m == got.labels_m).all()
print(len(got), checked.boxes, float(np.abs(wanted.geometry_m9 - got.geometry_m9).max()))
"""


@pytest.mark.slow
@pytest.mark.real
def test_the_real_frame_without_torch(binaries: Path, real_nuscenes: Path, tmp_path: Path) -> None:
    """The shipped weights on a real frame: exported here from torch, run there from raw pictures and points."""
    pytest.importorskip("torch")
    from altermoma.recipe import DataRecipe, EngineRecipe, Recipe
    from altermoma.workflow.single import export_to_bundle

    data = DataRecipe(root=str(real_nuscenes), train_split="mysplit", val_split="mysplit", sweeps=1)
    bundle = export_to_bundle(Recipe(data=data, engine=EngineRecipe(precision="fp32")), tmp_path / "bundle")
    done = run(str(binaries / "python"), "-c", REAL_FRAME, str(bundle), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    boxes, sure, difference = done.stdout.split()
    assert int(boxes) >= int(sure) >= 0
    assert int(boxes) > 0
    assert float(difference) < 1e-3

    done = run(str(binaries / "altermoma"), "build", str(bundle), cwd=tmp_path)
    assert done.returncode == 3
    assert "engines cannot be built here" in done.stderr
    assert Bundle.open(bundle).manifest.engines.built == ()
