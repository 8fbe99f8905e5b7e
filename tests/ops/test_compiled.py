"""Kernels compile where nothing can be kept."""

from __future__ import annotations

import errno

import pytest
from numba.core import caching

from altermoma.ops.compiled import compiled


def double(number: int) -> int:
    return 2 * number


def test_a_full_disk_does_not_stop_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # Whether or not an earlier process left the machine code.
    monkeypatch.setattr(caching.IndexDataCacheFile, "load", lambda *_: None)
    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compiled("int64(int64)")(double)(21) == 42


def test_no_folder_to_write_to_does_not_stop_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert compiled("int64(int64)")(double)(21) == 42


def test_a_signature_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        compiled("int64(int64)")(double)("text")  # type: ignore[arg-type]
