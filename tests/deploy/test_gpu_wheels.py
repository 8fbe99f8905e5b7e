"""Wheels for a machine without network: what is asked for, and unpacking without pip."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from script_module import load_script

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_wheels.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("gpu_wheels")


def wheel(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", text)
    return path


def test_it_asks_for_what_the_package_depends_on(script: ModuleType) -> None:
    asked = {version: {text.partition(">")[0] for text in script.requirements(version)} for version in ("3.10", "3.11")}
    assert asked["3.11"] == {"numpy", "numba", "pillow", "rich", "typer", "tomli-w"}
    assert asked["3.10"] == asked["3.11"] | {"tomli"}
    command = script.download_command(Path("out"), "3.10", "aarch64", ["numba"])
    assert command[command.index("--python-version") + 1] == "3.10"
    assert "manylinux_2_28_aarch64" in command
    assert "--only-binary=:all:" in command


def test_unpacked_without_pip(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "one", "value = 1")
    wheel(tmp_path / "wheels", "two", "from one import value")
    command = [sys.executable, "-S", str(SCRIPT), "unpack", str(tmp_path / "wheels"), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 wheels")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import two; print(two.value)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_damaged_or_missing_wheels_are_named(script: ModuleType, tmp_path: Path) -> None:
    path = wheel(tmp_path / "wheels", "one", "value = 1" * 1000)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"value", b"VALUE", 1))
    with pytest.raises(SystemExit, match=r"one-1\.0-py3-none-any\.whl is damaged"):
        script.unpack(tmp_path / "wheels", tmp_path / "site")
    with pytest.raises(SystemExit, match="no wheels"):
        script.unpack(tmp_path / "nothing", tmp_path / "site")


def test_what_is_there_is_neither_built_nor_downloaded(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, **_: asked.append(command))
    script.gather(tmp_path, "3.11", "x86_64", ["altermoma", "numpy", script.NVRTC])
    (command,) = asked
    projects = {text.partition(">")[0] for text in command}
    assert "numba" in projects
    assert not {"numpy", script.NVRTC} & projects
    script.gather_only(tmp_path, "3.12", "x86_64", ["tomli-w"])
    assert asked[1][-2:] == ["tomli-w", "--no-deps"]
    assert asked[1][asked[1].index("--python-version") + 1] == "3.12"


def test_the_packed_python_runs_and_the_shell_stays_as_it_was(tmp_path: Path) -> None:
    """A packed TensorRT whose Python writes down its environment; the system's Python knows where NVRTC is."""
    packed, site, system = tmp_path / "trt", tmp_path / "site", tmp_path / "system"
    for folder in (packed, site, system / "nvidia" / "cu13" / "lib"):
        folder.mkdir(parents=True)
    (packed / "python").write_text('#!/bin/sh\necho "$PYTHONHOME|$PYTHONPATH|$LD_LIBRARY_PATH|$*"\nexit 7\n')
    (packed / "python").chmod(0o755)
    env = f"export TRT_PYTHON={packed}/python PYTHONHOME={packed} PYTHONPATH={packed}/own LD_LIBRARY_PATH={packed}/lib"
    (packed / "env.sh").write_text(env + "\n")
    line = f"bash {SCRIPT.with_name('gpu_trt.sh')} {packed} {site} program.py --out 'a b'; echo $?; echo [$PYTHONHOME]"
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(system)},
    )
    told, code, home = done.stdout.splitlines()
    assert (code, home) == ("7", "[]")
    where, modules, libraries, arguments = told.split("|")
    assert where == str(packed)
    assert modules.split(":") == [str(SCRIPT.parents[1]), f"{packed}/own", str(site)]
    assert libraries.split(":")[0] == f"{packed}/lib"
    assert f"{system}/nvidia/cu13/lib" in libraries.split(":")
    assert arguments == "program.py --out a b"
    missing = subprocess.run(
        ["bash", str(SCRIPT.with_name("gpu_trt.sh")), str(site), str(site), "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 2
    assert "no env.sh" in missing.stderr
