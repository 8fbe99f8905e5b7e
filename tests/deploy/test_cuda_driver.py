"""The CUDA driver through ctypes, against a compiled stand-in."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from altermoma.deploy.cuda_driver import Cuda, Gpu, probe_gpu
from altermoma.errors import EngineError

FAKE_DRIVER = """
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
static long allocated = 0;
int cuInit(unsigned f) { return INIT; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Fake GPU", n); return 0; }
int cuDeviceTotalMem_v2(size_t *b, int d) { *b = (size_t)32 << 30; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 7 : -1; return 0; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
static __thread void *current = 0, *before = 0;
static int capturing = 0, broken = 0;
int cuCtxSetCurrent(void *c) { current = c; return c ? 0 : 201; }
int cuCtxPushCurrent_v2(void *c) { before = current; current = c; return 0; }
int cuCtxPopCurrent_v2(void **c) { *c = current; current = before; return 0; }
/* As the real one: no free without a context, none in the thread that captures, which spoils the capture. */
static int freed(void) {
    if (!current) return 201;
    if (capturing) { broken = 1; return 900; }
    allocated--; return 0;
}
static long handles = 0;
long fake_handles(void) { return handles; }
int cuStreamCreate(void **s, unsigned f) { handles++; *s = (void *)0x7f0011223344; return 0; }
int cuStreamDestroy_v2(void *s) { handles--; return 0; }
int cuEventDestroy_v2(void *e) { handles--; return 0; }
int cuModuleUnload(void *m) { handles--; return 0; }
int cuMemAlloc_v2(uint64_t *p, size_t n) {
    if (n > (1u << 30)) return 2;
    allocated++; *p = (uint64_t)malloc(n); return 0;
}
int cuMemFree_v2(uint64_t p) { int error = freed(); if (!error) free((void *)p); return error; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { allocated++; *p = malloc(n); return 0; }
int cuMemFreeHost(void *p) { int error = freed(); if (!error) free(p); return error; }
static int stream_ok(void *s) { return s == (void *)0x7f0011223344 ? 0 : 400; }
int cuMemcpyHtoDAsync_v2(uint64_t d, const void *h, size_t n, void *s) { memcpy((void *)d, h, n); return stream_ok(s); }
int cuMemcpyDtoHAsync_v2(void *h, uint64_t d, size_t n, void *s) { memcpy(h, (void *)d, n); return stream_ok(s); }
int cuStreamSynchronize(void *s) { return current ? stream_ok(s) : 201; }
static int event_ok(void *e) { return e == (void *)0x7f00aabbccdd ? 0 : 400; }
int cuEventCreate(void **e, unsigned f) { handles++; *e = (void *)0x7f00aabbccdd; return 0; }
int cuEventRecord(void *e, void *s) { return event_ok(e) | stream_ok(s); }
int cuStreamWaitEvent(void *s, void *e, unsigned f) { return event_ok(e) | stream_ok(s) | f; }
int cuEventSynchronize(void *e) { return event_ok(e); }
int cuEventElapsedTime(float *ms, void *a, void *b) { *ms = 2.5f; return event_ok(a) | event_ok(b); }
int cuMemsetD8Async(uint64_t d, unsigned char c, size_t n, void *s) { memset((void *)d, c, n); return stream_ok(s); }
void fake_break(int b) { broken = b; }
int cuStreamBeginCapture_v2(void *s, int mode) { capturing = 1; return stream_ok(s) | (mode != 1); }
static int graphs;
int cuStreamEndCapture(void *s, void **g) {
    capturing = 0; graphs += !broken; *g = broken ? 0 : (void *)0x7f0055667788; return broken ? 900 : stream_ok(s);
}
int cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long f) {
    allocated++; *x = (void *)0x7f0099887766; return g == (void *)0x7f0055667788 && !f ? 0 : 400;
}
static int graphs = 0;
int fake_graphs(void) { return graphs; }
int cuGraphDestroy(void *g) { graphs--; return g == (void *)0x7f0055667788 ? 0 : 400; }
int cuGraphExecDestroy(void *x) { return freed(); }
int cuGraphLaunch(void *x, void *s) { return x == (void *)0x7f0099887766 ? stream_ok(s) : 400; }
int cuModuleLoadData(void **m, const void *image) {
    handles++; *m = (void *)0x7f0044444444; return strcmp(image, "cubin") ? 200 : 0;
}
int cuModuleGetFunction(void **f, void *m, const char *name) {
    *f = (void *)0x7f0033333333; return m == (void *)0x7f0044444444 && !strcmp(name, "scale") ? 0 : 500;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *s, void **arguments, void **extra) {
    if (f != (void *)0x7f0033333333 || gy * gz * by * bz != 1 || shared || extra || stream_ok(s)) return 400;
    float *values = *(float **)arguments[0]; int count = *(int *)arguments[1]; float by_what = *(float *)arguments[2];
    if (gx * bx < count) return 1;
    for (int i = 0; i < count; i++) values[i] *= by_what;
    return 0;
}
long fake_allocated(void) { return allocated; }
"""


def fake_driver(folder: Path, *, init: int = 0, count: int = 1) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = folder / "driver.c", folder / f"libfake{init}{count}.so"
    source.write_text(FAKE_DRIVER.replace("INIT", str(init)).replace("COUNT", str(count)))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


@pytest.mark.parametrize(
    ("init", "count", "said"), [(100, 0, "cuInit gives error 100"), (803, 1, "error 803"), (0, 0, "lists no GPU")]
)
def test_probe_says_why_there_is_no_gpu(tmp_path: Path, init: int, count: int, said: str) -> None:
    probe = probe_gpu((fake_driver(tmp_path, init=init, count=count),))
    assert probe.gpu is None
    assert said in probe.reason
    with pytest.raises(EngineError, match=said):
        Cuda((fake_driver(tmp_path, init=init, count=count),))


def test_probe_without_a_driver() -> None:
    assert probe_gpu(("libno-such-driver.so.1",)).reason == "no NVIDIA driver library (libno-such-driver.so.1)"


def test_driver_calls_pass_whole_addresses_and_free_everything(tmp_path: Path) -> None:
    """Through ctypes into a compiled stand-in: 64-bit addresses, the stream, copies, frees."""
    import ctypes
    import gc

    library = fake_driver(tmp_path)
    cuda = Cuda((library,))
    assert cuda.gpu == Gpu(name="Fake GPU", compute_capability="8.7", memory_mib=32768, driver="12.6")
    device, out = cuda.device_buffer(1000), cuda.pinned(1000)
    host = cuda.pinned(1000)
    host[:] = np.arange(1000) % 251
    cuda.upload(device.address, host, 1000)
    cuda.download(out, device.address, 999)
    cuda.synchronise()
    np.testing.assert_array_equal(out[:999], host[:999])
    with pytest.raises(EngineError, match="out of memory"):
        cuda.device_buffer(2 << 30)
    counter = ctypes.CDLL(library).fake_allocated
    counter.restype = ctypes.c_long
    assert counter() == 3
    view = host[10:20]
    del device, out, host
    gc.collect()
    assert counter() == 1
    del view
    gc.collect()
    assert counter() == 0


def test_events_graphs_and_kernels(tmp_path: Path) -> None:
    """Handles arrive whole, arguments by their types; a capture that fails says so and leaves nothing behind."""
    import ctypes
    import gc

    library = fake_driver(tmp_path)
    cuda = Cuda((library,))
    counter, break_it = ctypes.CDLL(library).fake_allocated, ctypes.CDLL(library).fake_break
    event, stream = cuda.new_event(), cuda.new_stream()
    cuda.record(event, stream)
    cuda.wait(stream, event)
    cuda.wait_here(event)
    assert cuda.elapsed_ms(event, event) == 2.5
    work: list[str] = []
    graph = cuda.capture(stream, lambda: work.append("queued"))
    cuda.replay(graph, stream)
    assert work == ["queued"]
    assert counter() == 1
    del graph
    gc.collect()
    assert counter() == 0
    break_it(1)
    with pytest.raises(EngineError, match="cannot be captured"):
        cuda.capture(stream, lambda: None)
    break_it(0)

    values = np.arange(300, dtype=np.float32)
    function = cuda.load_kernels(b"cubin").function("scale")
    arguments = [ctypes.c_uint64(values.ctypes.data), ctypes.c_int(300), ctypes.c_float(0.5)]
    cuda.launch(function, 300, arguments, stream)
    np.testing.assert_array_equal(values, np.arange(300, dtype=np.float32) / 2)
    buffer = cuda.device_buffer(8)
    cuda.fill(buffer.address, 7, 8)
    assert bytes((ctypes.c_uint8 * 8).from_address(buffer.address)) == b"\7" * 8
    with pytest.raises(EngineError, match="cuModuleGetFunction gave error 500"):
        cuda.load_kernels(b"cubin").function("other")
    with pytest.raises(EngineError, match="cuModuleLoadData"):
        cuda.load_kernels(b"nothing")


def test_another_thread_enters_the_context(tmp_path: Path) -> None:
    cuda = Cuda((fake_driver(tmp_path),))
    found: list[str] = []

    def elsewhere() -> None:
        try:
            cuda.synchronise()
        except EngineError as error:
            found.append(error.found)
        cuda.enter()
        cuda.synchronise()
        found.append("done")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == ["the CUDA driver call cuStreamSynchronize gave error 201", "done"]


class Ring:
    """Garbage that only a collection finds, with memory of the device in it."""

    def __init__(self, cuda: Cuda) -> None:
        self.buffer, self.itself = cuda.device_buffer(100), self


def test_a_collection_does_not_spoil_a_capture(tmp_path: Path) -> None:
    """A free in the thread that captures is forbidden, and a collection may come at any allocation."""
    import ctypes
    import gc

    library = fake_driver(tmp_path)
    cuda = Cuda((library,))
    before = gc.get_threshold()

    def work() -> None:
        gc.set_threshold(10, 1, 1)
        assert len([[] for _ in range(100_000)]) == 100_000

    gc.collect()
    Ring(cuda)
    try:
        cuda.capture(cuda.stream, work)
    finally:
        gc.set_threshold(*before)
    assert gc.isenabled()
    gc.collect()
    assert ctypes.CDLL(library).fake_allocated() == 0


def test_work_that_fails_leaves_no_graph_behind(tmp_path: Path) -> None:
    import ctypes

    library = fake_driver(tmp_path)
    cuda = Cuda((library,))

    def fail() -> None:
        raise ValueError("no work today")

    with pytest.raises(ValueError, match="no work today"):
        cuda.capture(cuda.stream, fail)
    assert ctypes.CDLL(library).fake_graphs() == 0


def test_memory_is_freed_by_a_thread_that_never_entered(tmp_path: Path) -> None:
    import ctypes

    library = fake_driver(tmp_path)
    cuda = Cuda((library,))
    held = [cuda.device_buffer(100), cuda.pinned(100)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert ctypes.CDLL(library).fake_allocated() == 0


def test_streams_events_and_code_go_with_what_made_them(tmp_path: Path) -> None:
    import ctypes

    library = fake_driver(tmp_path)
    cuda = Cuda((library,))
    handles = ctypes.CDLL(library).fake_handles
    kernels = cuda.load_kernels(b"cubin")
    cuda.new_event()
    assert handles() == 3
    del cuda
    assert handles() == 3, "what holds code needs all of it"
    del kernels
    assert handles() == 0
