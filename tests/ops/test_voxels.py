"""Voxels against a dictionary of lists and against numpy."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
from numpy_tables import numpy_voxels

from altermoma.geometry import Geometry
from altermoma.ops.voxels import Voxeliser

GEOMETRY = Geometry(point_range=(-2.0, -2.0, -0.9, 2.0, 2.0, 0.9), max_points_per_voxel=3)


def cloud(count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.standard_normal((count, 5)) * [1.5, 1.5, 0.6, 30, 0.1]).astype(np.float32)


def by_hand(points: np.ndarray, geometry: Geometry) -> dict[int, np.ndarray]:
    lists: dict[int, list[np.ndarray]] = defaultdict(list)
    _, y_cells, z_cells = geometry.sparse_shape
    for point in points:
        low, high = geometry.point_range[:3], geometry.point_range[3:]
        if all(l <= c < h for c, l, h in zip(point[:3], low, high, strict=True)):
            sizes = np.float32(geometry.voxel_size)
            x, y, z = (int(np.floor((c - np.float32(l)) / s)) for c, l, s in zip(point[:3], low, sizes, strict=True))
            if z < z_cells - 1:
                lists[(x * y_cells + y) * z_cells + z].append(point)
    return {key: np.mean(members[: geometry.max_points_per_voxel], axis=0) for key, members in lists.items()}


def test_means_and_keys() -> None:
    points = cloud(4000)
    voxels = Voxeliser(GEOMETRY)(points)
    expected = by_hand(points, GEOMETRY)
    assert voxels.keys_n.tolist() == sorted(expected)
    np.testing.assert_allclose(voxels.features_nc, np.stack([expected[k] for k in voxels.keys_n]), rtol=1e-5, atol=1e-5)
    assert voxels.dropped == 0


def test_too_many_voxels_keep_those_seen_first_and_count_the_rest() -> None:
    points = cloud(500)
    everything = Voxeliser(GEOMETRY)(points)
    limited = Voxeliser(dataclasses.replace(GEOMETRY, max_voxels=50))(points)
    assert len(limited.keys_n) == 50
    assert limited.dropped == len(everything.keys_n) - 50
    first_seen = Voxeliser(GEOMETRY)(points[:60]).keys_n
    assert set(limited.keys_n) <= set(everything.keys_n)
    assert len(set(first_seen) & set(limited.keys_n)) == min(50, len(first_seen))


def test_no_points_give_no_voxels() -> None:
    assert Voxeliser(GEOMETRY)(np.zeros((0, 5), np.float32)).features_nc.shape == (0, 5)


@pytest.mark.parametrize("far", [3e9, 1e30, np.finfo(np.float32).max])
def test_points_far_beyond_any_grid_are_left_out(far: float) -> None:
    points = np.array([[0.1, 0.1, 0.1, 1, 0], [far, 0, 0, 1, 0], [0, -far, 0, 1, 0]], np.float32)
    assert len(Voxeliser(Geometry())(points).keys_n) == 1


@pytest.mark.parametrize("max_voxels", [100, 30000])
def test_equals_numpy_frame_after_frame(max_voxels: int) -> None:
    geometry = dataclasses.replace(GEOMETRY, max_voxels=max_voxels)
    voxelise = Voxeliser(geometry)
    for count in (3000, 0, 500):
        points = cloud(count)
        found, expected = voxelise(points), numpy_voxels(points, geometry)
        np.testing.assert_array_equal(found.keys_n, expected.keys_n, strict=True)
        np.testing.assert_allclose(found.features_nc, expected.features_nc, rtol=1e-6, atol=1e-7)
        assert found.dropped == expected.dropped
