"""The project's CUDA kernels, compiled for the GPU at hand by NVRTC through ctypes, and kept.

NVRTC comes with every CUDA toolkit, with JetPack and DRIVE OS, and alone as `pip install 'altermoma[kernels]'`. It
needs no GPU to compile, so that every kernel is compiled for every architecture in the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from altermoma.errors import EngineError, StorageError, UnsupportedError
from altermoma.storage import cache_folder, write_bytes

SOURCES = Path(__file__).with_name("kernels")
NAMES = ("scan", "voxels", "cells", "tables", "images", "depth", "pool")
"""One file for each job."""

LIBRARIES = (
    *(f"libnvrtc.so.{version}" for version in ("13", "12", "11.8", "11.4", "11.2")),
    "libnvrtc.so",
    *(f"nvrtc64_{version}_0.dll" for version in ("130", "120", "112")),
)
PACKAGES = ("nvidia.cu13", "nvidia.cuda_nvrtc")
"""Python packages that may hold the library, where the system does not."""

OPTIONS = ("--fmad=false", "--std=c++17", "--restrict")
"""No fused multiply-add: results are those of the host, bit by bit. No kernel is given one buffer by two names."""


@functools.cache
def find_nvrtc(driver: str = "", capability: str = "") -> Any | None:
    """The library, None where it is not to be found. Never raises.

    Args:
        driver: CUDA version of the driver, as "12.6": it loads nothing that a newer major version compiled.
        capability: of the GPU, as "8.7": a library that knows it goes before those that do not.
    """
    newest = int(driver.partition(".")[0]) if driver else sys.maxsize
    held = [str(path) for package in PACKAGES for path in sorted(_folder(package).glob("lib/libnvrtc.so.*[0-9]"))]
    first = None
    for name in (*LIBRARIES, *held):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if int(nvrtc_version(library).partition(".")[0]) > newest:
            continue
        if not capability or _architecture(capability) in supported_architectures(library):
            return library
        first = first or library
    return first


def _architecture(capability: str) -> int:
    return int(capability.replace(".", ""))


def _folder(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else Path("nowhere")


def nvrtc_version(nvrtc: Any) -> str:
    """As "12.9"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def supported_architectures(nvrtc: Any) -> tuple[int, ...]:
    """As 87 for sm_87."""
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(found)
    return tuple(found)


def source_of(name: str) -> str:
    """One file of kernels, with what they share in front."""
    common = (SOURCES / "common.cuh").read_text(encoding="utf-8")
    return f'{common}\n#line 1 "{name}.cu"\n{(SOURCES / f"{name}.cu").read_text(encoding="utf-8")}'


def compile_kernels(name: str, capability: str, nvrtc: Any | None = None) -> bytes:
    """Machine code of one file of kernels, from the cache where it is there.

    Args:
        name: one of `NAMES`.
        capability: of the GPU, as "8.7".
        nvrtc: the library; looked for if left out.

    Raises:
        UnsupportedError: no NVRTC, or one that does not know this GPU.
        EngineError: the source does not compile; says what NVRTC says.
    """
    nvrtc = nvrtc or find_nvrtc("", capability)
    if nvrtc is None:
        raise UnsupportedError(
            "NVRTC, which compiles the device kernels, is not to be found",
            expected=f"{LIBRARIES[0]} or {LIBRARIES[1]}",
            remedy="pip install 'altermoma[kernels]', or prepare frames on the host (preparation='host')",
        )
    architecture = _architecture(capability)
    known = supported_architectures(nvrtc)
    if architecture not in known:
        raise UnsupportedError(
            f"NVRTC {nvrtc_version(nvrtc)} does not compile for compute capability {capability}",
            expected="one of " + ", ".join(f"{a // 10}.{a % 10}" for a in known),
            remedy="install the NVRTC of the CUDA version that came with the driver, or prepare frames on the host",
        )
    options = (f"--gpu-architecture=sm_{architecture}", *OPTIONS)
    source = source_of(name)
    told = "\n".join((nvrtc_version(nvrtc), *options, source))
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    kept = cache_folder() / "kernels" / f"{name}-sm{architecture}-{key}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    image = _compile(nvrtc, source, name, options)
    # A read-only vehicle compiles at every start; it takes a second.
    with contextlib.suppress(StorageError):
        write_bytes(kept, image)
    return image


def _compile(nvrtc: Any, source: str, name: str, options: tuple[str, ...]) -> bytes:
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None), name)
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), given)
        if status:
            raise EngineError(f"{name}.cu does not compile with {' '.join(options)}: {_log(nvrtc, program)}")
        size = ctypes.c_size_t()
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), name)
        image = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, image), name)
        return image.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _log(nvrtc: Any, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(max(size.value, 1))
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace").strip()


def _check(status: int, name: str) -> None:
    if status:
        raise EngineError(f"NVRTC gave error {status} for {name}.cu")
