"""The CUDA kernels compiled for this processor, so that they can be run where there is no GPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from altermoma.deploy.nvrtc import NAMES, source_of

SHIM = Path(__file__).with_name("kernel_shim.h")
_KERNEL = re.compile(r"KERNEL (\w+)\(([^)]*)\)")


FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unused-function", "-shared", "-fPIC")


def launcher(name: str, parameters: list[str]) -> str:
    """A C function that runs a kernel for all threads."""
    names = ", ".join(re.split(r"[ *]", parameter)[-1] for parameter in parameters)
    head = f'extern "C" void run_{name}(int threads_, unsigned seed_, {", ".join(parameters)})'
    return f"{head} {{ run_all(threads_, seed_, [&] {{ {name}({names}); }}); }}"


class CpuKernel:
    """One kernel; `writing` says for each pointer among its arguments whether it may write there."""

    def __init__(self, name: str, parameters: list[str], function: Any) -> None:
        self.name, self._function = name, function
        self.kinds = [parameter.rsplit(" ", 1)[0] if "*" not in parameter else "*" for parameter in parameters]
        self.writing = [not p.startswith("const") for p in parameters if "*" in p]

    def __call__(self, threads: int, arguments: Sequence[Any], seed: int = 1) -> None:
        found = {ctypes.c_int: "int", ctypes.c_float: "float", ctypes.c_uint64: "*"}
        assert [found[type(value)] for value in arguments] == self.kinds, f"{self.name} was given other arguments"
        self._function(threads, seed, *arguments)


@functools.cache
def cpu_kernels() -> dict[str, dict[str, CpuKernel]]:
    """Kernels by file and name; skips the test where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    sources = {file: source_of(file) for file in NAMES}
    declared = {
        file: {name: [" ".join(p.split()) for p in text.split(",")] for name, text in _KERNEL.findall(source)}
        for file, source in sources.items()
    }
    programs = {
        file: "\n".join([f'#include "{SHIM}"', source, *(launcher(n, p) for n, p in declared[file].items())])
        for file, source in sources.items()
    }
    told = repr((sorted(programs.items()), SHIM.read_text(), FLAGS))
    folder = Path(tempfile.gettempdir()) / f"altermoma-kernels-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as draft:
            build(compiler, programs, Path(draft) / "built")
            shutil.copytree(Path(draft) / "built", folder, dirs_exist_ok=True)
    found: dict[str, dict[str, CpuKernel]] = {}
    for file, kernels in declared.items():
        loaded = ctypes.CDLL(str(folder / f"{file}.so"))
        found[file] = {name: CpuKernel(name, p, loaded[f"run_{name}"]) for name, p in kernels.items()}
    return found


def build(compiler: str, programs: dict[str, str], folder: Path) -> None:
    """Compiles every file into a library."""
    folder.mkdir()
    for file, program in programs.items():
        path = folder / f"{file}.cpp"
        path.write_text(program)
        command = [compiler, *FLAGS, "-o", str(folder / f"{file}.so"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class CpuModule:
    """Stands for loaded machine code: `image` is the name of a file."""

    def __init__(self, image: bytes) -> None:
        self._kernels = cpu_kernels()[image.decode()]

    def function(self, name: str) -> CpuKernel:
        return self._kernels[name]
