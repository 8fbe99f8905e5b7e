"""The little of CUDA that a runtime needs, through ctypes: memory, copies, streams, events, graphs, kernels.

Only the driver library is used, which is wherever a GPU works: no CUDA toolkit and no Python package, whose versions
would have to fit those of JetPack and DRIVE OS. Probing comes first and never crashes: TensorRT's own Runtime and
Builder do where there is no GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import EngineError

DRIVER_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")

BLOCK = 256
"""Threads of a block, for every kernel."""

_OUT_OF_MEMORY = 2
_LOST = frozenset({700, 702, 709, 710, *range(714, 720), 999})
"""Errors after which nothing works in this process any more: illegal addresses, time-outs, traps."""
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76
_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
"""Other threads of the process may allocate while this one captures."""


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


class GpuLostError(EngineError):
    """Something broke the GPU's context: only a new process can use the GPU."""


class Cuda:
    """The primary context of the first GPU, which TensorRT shares, and a stream. Streams and events are handles, and
    live as long as this object; the context as long as the process, since others use it as well.

    Raises:
        EngineError: no GPU, or a driver call that failed.
    """

    def __init__(self, libraries: tuple[str, ...] = DRIVER_LIBRARIES) -> None:
        probe = probe_gpu(libraries)
        self._driver = _load(libraries)
        if probe.gpu is None or self._driver is None:
            raise EngineError(probe.reason, expected="an NVIDIA GPU", remedy="use the onnxruntime backend here")
        self.gpu = probe.gpu
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._held: list[tuple[str, ctypes.c_void_p]] = []
        # Last in, first out, and after everything that holds this object: code goes when no graph runs it any more.
        weakref.finalize(self, _release, self._driver, self._context, self._held)
        self.enter()
        self.stream = self.new_stream()

    def enter(self) -> None:
        """Makes the context that of this thread: what was set up in one thread may be run in another."""
        self._call("cuCtxSetCurrent", self._context)

    def new_stream(self) -> int:
        """A stream that waits for no other."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        self._held.append(("cuStreamDestroy_v2", stream))
        return int(stream.value or 0)

    def new_event(self) -> int:
        """An event that keeps its time."""
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), 0)
        self._held.append(("cuEventDestroy_v2", event))
        return int(event.value or 0)

    def record(self, event: int, stream: int) -> None:
        """The event comes when everything queued on the stream so far is done."""
        self._call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def wait(self, stream: int, event: int) -> None:
        """What is queued on the stream from now on begins after the event."""
        self._call("cuStreamWaitEvent", ctypes.c_void_p(stream), ctypes.c_void_p(event), 0)

    def wait_here(self, event: int) -> None:
        """Holds this thread until the event has come."""
        self._call("cuEventSynchronize", ctypes.c_void_p(event))

    def elapsed_ms(self, first: int, second: int) -> float:
        """Between two events that have come."""
        found = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(found), ctypes.c_void_p(first), ctypes.c_void_p(second))
        return found.value

    def synchronise(self, stream: int | None = None) -> None:
        """Holds this thread until the stream is done."""
        self._call("cuStreamSynchronize", self._stream(stream))

    def device_buffer(self, size: int) -> DeviceBuffer:
        """Device memory of at least one byte, freed with the object."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        buffer = DeviceBuffer(pointer.value, size)
        self._free_with(buffer, "cuMemFree_v2", pointer)
        return buffer

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host bytes, which copies reach at full speed, freed with the array."""
        pointer = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)), 0)
        block = (ctypes.c_uint8 * max(size, 1)).from_address(int(pointer.value or 0))
        self._free_with(block, "cuMemFreeHost", pointer)
        return np.asarray(block, np.uint8)

    def upload(self, address: int, host: NDArray[np.uint8], size: int, stream: int | None = None) -> None:
        """Queues a copy of the first `size` bytes to the device."""
        self._call("cuMemcpyHtoDAsync_v2", *_copy(address, host.ctypes.data, size), self._stream(stream))

    def download(self, host: NDArray[np.uint8], address: int, size: int, stream: int | None = None) -> None:
        """Queues a copy of the first `size` bytes from the device."""
        to = ctypes.c_void_p(host.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", to, ctypes.c_uint64(address), ctypes.c_size_t(size), self._stream(stream))

    def fill(self, address: int, byte: int, size: int, stream: int | None = None) -> None:
        """Queues the setting of `size` bytes."""
        self._call(
            "cuMemsetD8Async",
            ctypes.c_uint64(address),
            ctypes.c_ubyte(byte),
            ctypes.c_size_t(size),
            self._stream(stream),
        )

    def load_kernels(self, image: bytes) -> Kernels:
        """Machine code (cubin) as NVRTC makes it."""
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        self._held.append(("cuModuleUnload", module))
        return Kernels(self, module)

    def launch(self, function: int, threads: int, arguments: Sequence[Any], stream: int | None = None) -> None:
        """Queues a kernel for at least so many threads; arguments are ctypes scalars, addresses as c_uint64."""
        pointers = (ctypes.c_void_p * max(len(arguments), 1))(*(ctypes.addressof(value) for value in arguments))
        blocks = max(-(-threads // BLOCK), 1)
        shape = (ctypes.c_uint(number) for number in (blocks, 1, 1, BLOCK, 1, 1, 0))
        self._call("cuLaunchKernel", ctypes.c_void_p(function), *shape, self._stream(stream), pointers, None)

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        """Records what `work` queues on the stream, which does not run, as a graph.

        Raises:
            EngineError: something in it cannot be captured; the stream is usable all the same.
        """
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        with nothing_collected():
            self._call("cuStreamBeginCapture_v2", self._stream(stream), _CAPTURE_THREAD_LOCAL)
            try:
                work()
            except BaseException:
                self._end_capture(stream, graph)
                if graph.value:
                    self._driver.cuGraphDestroy(graph)  # type: ignore[union-attr]
                raise
            ended = self._end_capture(stream, graph)
        if ended or not graph.value:
            raise EngineError(f"the work on a stream cannot be captured (cuStreamEndCapture gives error {ended})")
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        finally:
            self._driver.cuGraphDestroy(graph)  # type: ignore[union-attr]
        made = Graph(ready)
        self._free_with(made, "cuGraphExecDestroy", ready)
        return made

    def replay(self, graph: Graph, stream: int) -> None:
        """Queues a graph."""
        self._call("cuGraphLaunch", graph.handle, self._stream(stream))

    def _end_capture(self, stream: int, graph: ctypes.c_void_p) -> int:
        return int(self._driver.cuStreamEndCapture(self._stream(stream), ctypes.byref(graph)))  # type: ignore[union-attr]

    def _free_with(self, owner: Any, name: str, handle: Any) -> None:
        weakref.finalize(owner, _release, self._driver, self._context, [(name, handle)])

    def _stream(self, stream: int | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream if stream is None else stream)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise EngineError(
                f"{name}: the GPU is out of memory ({self.gpu.memory_mib} MiB in all)",
                remedy="end other programs that use the GPU, or lower the largest sizes in the stage contract",
            )
        if status in _LOST:
            raise GpuLostError(
                f"the CUDA driver call {name} gave error {status}: the GPU is lost to this process",
                remedy="start the program again; if it comes again, run compute-sanitizer on it and tell us",
            )
        if status:
            raise EngineError(f"the CUDA driver call {name} gave error {status}")


class DeviceBuffer:
    """Device memory by address; freed when no longer referenced."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


class Graph:
    """Captured work, ready to be replayed; freed when no longer referenced. It holds none of what it works on."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self.handle = handle


def _release(driver: Any, context: ctypes.c_void_p, held: list[tuple[str, Any]]) -> None:
    """Frees handles, the last one first, in whichever thread the last reference goes: it may never have entered."""
    if driver.cuCtxPushCurrent_v2(context):
        return  # The driver is shutting down, which frees everything.
    for name, handle in reversed(held):
        getattr(driver, name)(handle)
    driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


@contextlib.contextmanager
def nothing_collected() -> Iterator[None]:
    """No collection of garbage: one that frees device memory in a thread that captures spoils what it captures."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Kernels:
    """Functions of loaded machine code."""

    def __init__(self, cuda: Cuda, module: ctypes.c_void_p) -> None:
        self._cuda, self._module = cuda, module

    def function(self, name: str) -> int:
        """Handle of a kernel by name."""
        found = ctypes.c_void_p()
        self._cuda._call("cuModuleGetFunction", ctypes.byref(found), self._module, ctypes.c_char_p(name.encode()))
        return int(found.value or 0)


def _copy(device: int, host: int, size: int) -> tuple[Any, Any, Any]:
    return ctypes.c_uint64(device), ctypes.c_void_p(host), ctypes.c_size_t(size)
