"""The little of CUDA that a runtime needs, through ctypes: is there a GPU, device and pinned memory, copies, a stream.

Only the driver library is used, which is wherever a GPU works; no CUDA toolkit and no Python package. Probing comes
first and never crashes: TensorRT's own Runtime and Builder do where there is no GPU.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import EngineError

DRIVER_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")

_OUT_OF_MEMORY = 2
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The first visible GPU."""

    name: str
    compute_capability: str
    memory_mib: int
    driver: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """`gpu` is None where there is none to be used; `reason` says why."""

    gpu: Gpu | None
    reason: str = ""


def probe_gpu(libraries: tuple[str, ...] = DRIVER_LIBRARIES) -> Probe:
    """Looks for a usable GPU. Never raises and never crashes."""
    driver = _load(libraries)
    if driver is None:
        return Probe(gpu=None, reason=f"no NVIDIA driver library ({libraries[0]})")
    status = driver.cuInit(0)
    if status:
        return Probe(gpu=None, reason=f"the NVIDIA driver finds no usable GPU (cuInit gives error {status})")
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Probe(gpu=None, reason="the NVIDIA driver lists no GPU")
    return Probe(gpu=_describe(driver))


def _load(libraries: tuple[str, ...]) -> Any | None:
    for name in libraries:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _describe(driver: Any) -> Gpu:
    device, name, total, version = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, 256, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_mib=total.value >> 20,
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


class Cuda:
    """The primary context of the first GPU, which TensorRT shares, and one stream.

    Raises:
        EngineError: no GPU, or a driver call that failed.
    """

    def __init__(self, libraries: tuple[str, ...] = DRIVER_LIBRARIES) -> None:
        probe = probe_gpu(libraries)
        self._driver = _load(libraries)
        if probe.gpu is None or self._driver is None:
            raise EngineError(probe.reason, expected="an NVIDIA GPU", remedy="use the onnxruntime backend here")
        self.gpu = probe.gpu
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 1)
        self.stream = int(stream.value or 0)

    def device_buffer(self, size: int) -> DeviceBuffer:
        """Device memory of at least one byte, freed with the object."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return DeviceBuffer(self._driver, pointer.value, size)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host bytes, which copies reach at full speed, freed with the array."""
        pointer = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)), 0)
        block = (ctypes.c_uint8 * max(size, 1)).from_address(int(pointer.value or 0))
        weakref.finalize(block, self._driver.cuMemFreeHost, pointer)  # type: ignore[union-attr]
        return np.asarray(block, np.uint8)

    def upload(self, buffer: DeviceBuffer, host: NDArray[np.uint8], size: int) -> None:
        """Queues a copy of the first `size` bytes to the device."""
        self._call("cuMemcpyHtoDAsync_v2", *_copy(buffer.address, host.ctypes.data, size), self._stream())

    def download(self, host: NDArray[np.uint8], buffer: DeviceBuffer, size: int) -> None:
        """Queues a copy of the first `size` bytes from the device."""
        address = ctypes.c_void_p(host.ctypes.data)
        self._call(
            "cuMemcpyDtoHAsync_v2", address, ctypes.c_uint64(buffer.address), ctypes.c_size_t(size), self._stream()
        )

    def synchronise(self) -> None:
        self._call("cuStreamSynchronize", self._stream())

    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise EngineError(
                f"{name}: the GPU is out of memory ({self.gpu.memory_mib} MiB in all)",
                remedy="end other programs that use the GPU, or lower the largest sizes in the stage contract",
            )
        if status:
            raise EngineError(f"the CUDA driver call {name} gave error {status}")


class DeviceBuffer:
    """Device memory by address; freed when no longer referenced."""

    def __init__(self, driver: Any, address: int, size: int) -> None:
        self.address, self.size = address, size
        weakref.finalize(self, driver.cuMemFree_v2, ctypes.c_uint64(address))


def _copy(device: int, host: int, size: int) -> tuple[Any, Any, Any]:
    return ctypes.c_uint64(device), ctypes.c_void_p(host), ctypes.c_size_t(size)
