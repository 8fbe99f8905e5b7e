"""Our sparse encoder, tables and exported graph, against spconv on the real ten-sweep cloud."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from script_module import load_script

from altermoma.ops.sparse_tables import level_shapes
from altermoma.ops.voxels import Voxeliser

pytestmark = [pytest.mark.reference, pytest.mark.real, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def bench(one_thread: None) -> ModuleType:
    """The benchmark, which holds spconv's encoder."""
    if importlib.util.find_spec("spconv") is None:
        pytest.skip("spconv is not installed")
    return load_script("sparse_encoder_bench")


@pytest.mark.parametrize("variant", ["dense", "pruned, step 8"])
def test_encoder_equals_spconvs(variant: str, bench: ModuleType, real_nuscenes: Path) -> None:
    points = np.fromfile(real_nuscenes.parent / "nuscenes_ten_sweeps.bin", np.float16).reshape(-1, 5)
    voxels = Voxeliser(bench.GEOMETRY)(points.astype(np.float32))
    assert len(voxels.keys_n) > 100_000
    encoder = bench.random_encoder(bench.variants()[variant])
    cells = np.stack(np.unravel_index(voxels.keys_n, level_shapes(bench.GEOMETRY)[0]), axis=1)
    indices = torch.from_numpy(np.pad(cells, ((0, 0), (1, 0)))).int()
    expected = bench.without_gradients(bench.SpconvTwin(encoder), torch.from_numpy(voxels.features_nc), indices)
    ours = bench.Ours(encoder, voxels.keys_n, voxels.features_nc)
    in_torch = bench.OursInTorch(encoder, voxels.keys_n, voxels.features_nc, bench.HERE)
    for found in (ours.graph(), in_torch.graph().numpy()):
        assert found.shape == tuple(expected.shape)
        assert bench.difference(found, expected) < 1e-4
    assert float(expected.abs().max()) > 0.1
