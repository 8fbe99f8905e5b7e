"""The environment of the reference; where it is missing, its tests are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mmdet3d_standins import install

CHECKOUT = "ALTERMOMA_MMDET3D"


@pytest.fixture(scope="session")
def one_thread() -> None:
    """spconv gives right results."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        pytest.skip("spconv's CPU kernels race with more than one OpenMP thread: set OMP_NUM_THREADS=1")


@pytest.fixture(scope="session")
def checkout(one_thread: None) -> Path:
    """Root of the mmdetection3d checkout, with its BEVFusion project imported."""
    if CHECKOUT not in os.environ:
        pytest.skip(f"{CHECKOUT} names no mmdetection3d checkout")
    root = Path(os.environ[CHECKOUT])
    try:
        install(root)
    except (ImportError, AssertionError) as error:
        pytest.skip(f"mmdet3d's BEVFusion cannot be imported: {error}")
    return root
