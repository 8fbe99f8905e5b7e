"""The CUDA kernels compiled for this processor, so that they can be run where there is no GPU."""

from __future__ import annotations

import ctypes
import functools
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
    found: dict[str, dict[str, CpuKernel]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in NAMES:
            source = source_of(file)
            declared = {name: [" ".join(p.split()) for p in text.split(",")] for name, text in _KERNEL.findall(source)}
            launchers = [launcher(name, parameters) for name, parameters in declared.items()]
            path, library = Path(folder) / f"{file}.cpp", Path(folder) / f"{file}.so"
            path.write_text(f'#include "{SHIM}"\n{source}\n' + "\n".join(launchers))
            done = subprocess.run([compiler, *FLAGS, "-o", library, path], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            loaded = ctypes.CDLL(str(library))
            found[file] = {name: CpuKernel(name, p, loaded[f"run_{name}"]) for name, p in declared.items()}
    return found


class CpuModule:
    """Stands for loaded machine code: `image` is the name of a file."""

    def __init__(self, image: bytes) -> None:
        self._kernels = cpu_kernels()[image.decode()]

    def function(self, name: str) -> CpuKernel:
        return self._kernels[name]
