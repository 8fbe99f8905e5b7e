"""A bundle written once; tests that damage it take a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gpu_machine import Machine
from tensorrt_double import VERSIONS, TensorRtDouble
from tiny_bundle import toy_bundle

from altermoma.deploy.bundle import Bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> TensorRtDouble:
    """A stand-in of every released version whose names lie beside the checkout."""
    return TensorRtDouble(request.param)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(TensorRtDouble("10.3.0"), monkeypatch, tmp_path)
