"""Every kernel compiles for every GPU that is served, without one; what cannot be compiled is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from cuda_double import FakeCuda

from altermoma.deploy import device_kernels, nvrtc
from altermoma.deploy.device_kernels import DeviceKernels
from altermoma.deploy.nvrtc import NAMES, compile_kernels, find_nvrtc, nvrtc_version, supported_architectures
from altermoma.errors import EngineError, UnsupportedError

LIBRARY = find_nvrtc()
CAPABILITIES = ("8.0", "8.6", "8.7", "8.9", "9.0", "10.1", "11.0", "12.0")
"""A100, desktop Ampere, Orin, Ada, Hopper, Thor (until CUDA 12.9, since 13.0), desktop Blackwell."""

needs_nvrtc = pytest.mark.skipif(LIBRARY is None, reason="no NVRTC: pip install 'altermoma[kernels]'")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ALTERMOMA_CACHE", str(tmp_path))
    return tmp_path


@needs_nvrtc
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_for(capability: str) -> None:
    if int(capability.replace(".", "")) not in supported_architectures(LIBRARY):
        pytest.skip(f"NVRTC {nvrtc_version(LIBRARY)} does not know {capability}")
    for name in NAMES:
        assert compile_kernels(name, capability)[:4] == b"\x7fELF"


@needs_nvrtc
def test_what_was_compiled_is_kept(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    image = compile_kernels("scan", "8.7")
    (kept,) = (cache / "kernels").iterdir()
    assert kept.name.startswith("scan-sm87-")
    kept.write_bytes(b"kept")
    assert compile_kernels("scan", "8.7") == b"kept"
    monkeypatch.setattr(nvrtc, "OPTIONS", ("--fmad=true",))
    assert compile_kernels("scan", "8.7") != b"kept"
    assert image[:4] == b"\x7fELF"


@needs_nvrtc
def test_a_place_that_cannot_be_written_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALTERMOMA_CACHE", str(tmp_path / "file"))
    assert compile_kernels("scan", "8.0")[:4] == b"\x7fELF"


@needs_nvrtc
def test_errors_say_what_nvrtc_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "source_of", lambda name: 'extern "C" __global__ void broken() { int a = ; }')
    with pytest.raises(EngineError, match=r"scan\.cu does not compile .*expected an expression"):
        compile_kernels("scan", "8.0")


@needs_nvrtc
def test_a_gpu_that_it_does_not_know() -> None:
    with pytest.raises(UnsupportedError, match=r"does not compile for compute capability 3\.5"):
        compile_kernels("scan", "3.5")


@needs_nvrtc
def test_an_nvrtc_newer_than_the_driver_is_not_taken() -> None:
    """Its kernels would not load; the same major version is compatible."""
    major = int(nvrtc_version(LIBRARY).partition(".")[0])
    assert find_nvrtc(f"{major}.0") is not None
    found = find_nvrtc(f"{major - 1}.8")
    assert found is None or nvrtc_version(found) < nvrtc_version(LIBRARY)


def test_a_library_that_knows_the_gpu_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA 13 dropped Volta, and 12 does not know what came later: both may be installed."""
    known = {"13.0": (75, 110), "12.9": (70, 75)}
    monkeypatch.setattr(nvrtc, "LIBRARIES", tuple(known))
    monkeypatch.setattr(nvrtc, "PACKAGES", ())
    monkeypatch.setattr("ctypes.CDLL", str)
    monkeypatch.setattr(nvrtc, "nvrtc_version", str)
    monkeypatch.setattr(nvrtc, "supported_architectures", known.__getitem__)
    find = find_nvrtc.__wrapped__
    assert find("13.0", "7.0") == "12.9"
    assert find("13.0", "11.0") == find("13.0", "7.5") == find() == "13.0"
    assert find("13.0", "3.5") == "13.0"
    assert find("12.8", "11.0") == "12.9"


def test_kernels_that_the_driver_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()

    def refuse(image: bytes) -> None:
        raise EngineError("the CUDA driver call cuModuleLoadData gave error 200")

    monkeypatch.setattr(cuda, "load_kernels", refuse)
    monkeypatch.setattr(device_kernels, "compile_kernels", lambda name, *_: name.encode())
    with pytest.raises(UnsupportedError, match=r"CUDA 12\.6.* does not load .*error 200"):
        DeviceKernels(cuda)  # type: ignore[arg-type]


def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "find_nvrtc", lambda *_: None)
    with pytest.raises(UnsupportedError, match="NVRTC") as caught:
        compile_kernels("scan", "8.0")
    assert "preparation='host'" in caught.value.remedy
