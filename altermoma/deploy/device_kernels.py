"""The project's kernels on one GPU, called by name, and prefix sums made of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from altermoma.deploy.cuda_driver import Cuda, DeviceBuffer, GpuLostError
from altermoma.deploy.nvrtc import NAMES, compile_kernels, find_nvrtc
from altermoma.errors import EngineError, UnsupportedError

CHUNK = 64
"""Values per thread of a prefix sum, as in kernels/scan.cu."""


class Pointer(int):
    """A device address, as an argument of a kernel; other whole numbers are 32-bit integers there."""


NULL = Pointer(0)


class DeviceKernels:
    """Compiled for the GPU of `cuda`.

    Raises:
        UnsupportedError: no NVRTC, one that does not know this GPU, or whose kernels the driver does not load.
        EngineError: a kernel does not compile.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        gpu = cuda.gpu
        nvrtc = find_nvrtc(gpu.driver, gpu.compute_capability)
        images = {name: compile_kernels(name, gpu.compute_capability, nvrtc) for name in NAMES}
        try:
            self._modules = {name: cuda.load_kernels(image) for name, image in images.items()}
        except GpuLostError:
            raise
        except EngineError as error:
            raise UnsupportedError(
                f"the driver (CUDA {gpu.driver}) does not load the compiled kernels: {error.found}",
                expected="an NVRTC that is not newer than the driver",
                remedy="install the NVRTC of the driver's CUDA version, or prepare frames on the host",
            ) from error
        self._functions: dict[tuple[str, str], Any] = {}

    def run(self, file: str, kernel: str, threads: int, arguments: Sequence[int | float], stream: int) -> None:
        """Queues a kernel for at least so many threads."""
        function = self._functions.get((file, kernel))
        if function is None:
            function = self._functions[file, kernel] = self._modules[file].function(kernel)
        self.cuda.launch(function, threads, [_scalar(value) for value in arguments], stream)


def _scalar(value: int | float) -> Any:
    if isinstance(value, Pointer):
        return ctypes.c_uint64(value)
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int(value)


class PrefixSum:
    """Exclusive prefix sums in place, of a fixed number of 32-bit integers."""

    def __init__(self, kernels: DeviceKernels, count: int) -> None:
        self._kernels, self._counts = kernels, [count]
        while self._counts[-1] > CHUNK:
            self._counts.append(-(-self._counts[-1] // CHUNK))
        self._sums: list[DeviceBuffer] = [kernels.cuda.device_buffer(4 * count) for count in self._counts[1:]]

    def queue(self, values: Pointer, stream: int) -> None:
        """Queues the sums of the values at an address."""
        places = [values, *(Pointer(buffer.address) for buffer in self._sums)]
        run = self._kernels.run
        for level in range(len(places) - 1):
            count = self._counts[level]
            run("scan", "sum_chunks", self._counts[level + 1], (places[level], count, places[level + 1]), stream)
        for level in reversed(range(len(places))):
            offsets = places[level + 1] if level + 1 < len(places) else NULL
            threads = -(-self._counts[level] // CHUNK)
            run("scan", "scan_chunks", threads, (places[level], self._counts[level], offsets), stream)
