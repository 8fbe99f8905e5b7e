"""Target profiles: all that ship, and broken ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tensorrt_double import VERSIONS

from altermoma.deploy.targets import load_target, read_target, target_names
from altermoma.errors import RecipeError

REPO = Path(__file__).resolve().parents[2]

SHIPPED = {
    "generic": ("8.5.2", ""),
    "orin-jp51": ("8.5.2", "8.7"),
    "orin-jp60": ("8.6.2", "8.7"),
    "orin-jp62": ("10.3.0", "8.7"),
    "orin-jp72": ("10.16.2", "8.7"),
    "thor-jp70": ("10.13.3", "11.0"),
    "thor-jp72": ("10.16.2", "11.0"),
    "thor-trt11": ("11.0.1", "11.0"),
    "drive-os6": ("8.6.11", "8.7"),
    "drive-os7": ("10.10.10", ""),
}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_versions_of_the_release_notes(name: str) -> None:
    target = load_target(name)
    assert (target.tensorrt, target.compute_capability) == SHIPPED[name]
    assert target.name == name


def test_every_profile_is_consistent() -> None:
    assert set(SHIPPED) < set(target_names())
    for name in target_names():
        target = load_target(name)
        assert target.tensorrt_version >= (8, 5)
        assert set(target.channel_step) == set(target.precisions), name
        assert {"fp32", "fp16"} <= set(target.precisions)
        assert ("fp8" in target.precisions) <= (target.tensorrt_version >= (8, 6)), name
        if target.tensorrt_version >= (10, 8):
            assert target.dla_cores == 0, "10.7 was the last standard release with DLA"
        assert json.loads(json.dumps(target.to_dict()))["tensorrt"] == target.tensorrt


@pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")
def test_every_version_lies_among_those_whose_names_are_known() -> None:
    """So that what the builder calls there was held against a release before it and one after it."""
    known = sorted(tuple(int(part) for part in version.split(".")[:2]) for version in VERSIONS)
    for name in target_names():
        version = load_target(name).tensorrt_version[:2]
        assert known[0] <= version <= known[-1], name
        assert any(major == version[0] for major, _ in known), name


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no target 'orin-jp61'") as caught:
        load_target("orin-jp61")
    assert "orin-jp" in caught.value.remedy
    with pytest.raises(RecipeError, match="does not offer fp8"):
        load_target("orin-jp51").step("fp8")
    assert load_target("orin-jp51").step("int8") == 32


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mycar" / "target.toml"
    path.parent.mkdir()
    shutil.copy(REPO / "deploy/orin-jp62/target.toml", path)
    assert load_target(str(path)).name == "mycar"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tensorrt =", "tensorrrt =", "unknown key tensorrrt, no key tensorrt"),
        ('"10.3.0"', '"latest"', "tensorrt = 'latest'"),
        ('"jetson"', '"toaster"', "platform = 'toaster'"),
        ("memory_gib = 32", 'memory_gib = "32"', "memory_gib = '32'"),
        ("fp16 = 8", "fp16 = 0", "channel_step"),
        ("sparse = true", "sparse = ", "not valid TOML"),
        ('["fp32", "fp16", "int8"]', '["fp32", 16]', "precisions"),
    ],
)
def test_broken_profiles(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (REPO / "deploy/orin-jp62/target.toml").read_text()
    assert old in text
    path = tmp_path / "target.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError, match=said):
        read_target(path)
    with pytest.raises(RecipeError, match="no target profile"):
        read_target(tmp_path / "absent.toml")


@pytest.mark.slow
def test_wheel_carries_profiles_contracts_and_all_of_the_package(tmp_path: Path) -> None:
    """Installed without the checkout beside it, the package still knows its targets."""
    pytest.importorskip("hatchling")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        carried = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    package = REPO / "altermoma"
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {f"altermoma/{p.relative_to(package).as_posix()}" for p in files} <= carried
    assert {f"altermoma/export/contracts/{p.name}" for p in (REPO / "export").glob("*.toml")} <= carried
    code = "from altermoma.deploy import targets; print(targets.__file__); print(*targets.target_names())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=False
    )
    file, names = done.stdout.splitlines()
    assert file.startswith(str(tmp_path))
    assert set(names.split()) == set(target_names())
