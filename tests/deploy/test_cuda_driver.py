"""The CUDA driver through ctypes, against a compiled stand-in."""

from __future__ import annotations

import shutil
import subprocess
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
int cuCtxSetCurrent(void *c) { return c ? 0 : 201; }
int cuStreamCreate(void **s, unsigned f) { *s = (void *)0x7f0011223344; return 0; }
int cuMemAlloc_v2(uint64_t *p, size_t n) {
    if (n > (1u << 30)) return 2;
    allocated++; *p = (uint64_t)malloc(n); return 0;
}
int cuMemFree_v2(uint64_t p) { allocated--; free((void *)p); return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) { allocated++; *p = malloc(n); return 0; }
int cuMemFreeHost(void *p) { allocated--; free(p); return 0; }
static int stream_ok(void *s) { return s == (void *)0x7f0011223344 ? 0 : 400; }
int cuMemcpyHtoDAsync_v2(uint64_t d, const void *h, size_t n, void *s) { memcpy((void *)d, h, n); return stream_ok(s); }
int cuMemcpyDtoHAsync_v2(void *h, uint64_t d, size_t n, void *s) { memcpy(h, (void *)d, n); return stream_ok(s); }
int cuStreamSynchronize(void *s) { return stream_ok(s); }
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
    cuda.upload(device, host, 1000)
    cuda.download(out, device, 999)
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
