"""Pillars and their tables against a dictionary of lists."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from altermoma.geometry import Geometry
from altermoma.models.presets import config_of
from altermoma.ops.pillars import PillarBuilder, Pillars

GEOMETRY = Geometry(
    lidar="pillars",
    point_range=(-2.0, -1.6, -0.9, 2.0, 1.6, 0.9),
    voxel_size=(0.4, 0.2, 1.8),
    lidar_levels=0,
    max_points_per_voxel=4,
)
NUSCENES = config_of("bevfusion-mit-r101-pointpillars").geometry


def cloud(count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 5)) * [1.2, 1.0, 0.6, 30, 0.1]).astype(np.float32)


def by_hand(points: np.ndarray, geometry: Geometry) -> dict[int, np.ndarray]:
    """Cell x * Y + y -> decorated points [n, 10] in float64, in the cloud's order."""
    low, high = np.float32(geometry.point_range[:3]), np.float32(geometry.point_range[3:])
    lists: dict[int, list[np.ndarray]] = defaultdict(list)
    columns = round((geometry.point_range[4] - geometry.point_range[1]) / geometry.voxel_size[1])
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(axis=1)
    cells = np.floor((points[:, :2] - low[:2]) / np.float32(geometry.voxel_size[:2])).astype(int)
    for point, (x, y) in zip(points[inside], cells[inside].tolist(), strict=True):
        lists[x * columns + y].append(point.astype(np.float64))
    found = {}
    for cell, members in lists.items():
        first = np.stack(members[: geometry.max_points_per_voxel])
        axis = low[:2] + (np.array(divmod(cell, columns)) + 0.5) * geometry.voxel_size[:2]
        found[cell] = np.concatenate([first, first[:, :3] - first[:, :3].mean(axis=0), first[:, :2] - axis], axis=1)
    return found


def check(pillars: Pillars, expected: dict[int, np.ndarray], geometry: Geometry) -> None:
    """Every pillar's slots hold its points, then zeros; every cell knows its pillar."""
    cells = pillars.bev_table_m1[:, 0]
    assert np.flatnonzero(cells < len(expected)).tolist() == sorted(expected)
    assert (cells[cells >= len(expected)] == len(expected)).all()
    slots = pillars.points_rc[pillars.pillar_table_nt]
    assert slots.shape == (len(expected), geometry.max_points_per_voxel, 10)
    wanted = np.zeros(slots.shape)
    for cell, members in expected.items():
        wanted[cells[cell], : len(members)] = members
    np.testing.assert_allclose(slots, wanted, rtol=0, atol=2e-5)
    owner = np.broadcast_to(np.arange(len(slots))[:, None], pillars.pillar_table_nt.shape)
    assert np.array_equal(pillars.point_pillar_r[pillars.pillar_table_nt], owner)
    full = sum(len(members) == geometry.max_points_per_voxel for members in expected.values())
    points = sum(map(len, expected.values()))
    assert len(pillars.points_rc) == points + len(expected) - full
    assert pillars.points_rc.any(axis=1).sum() == points


@pytest.mark.parametrize("count", [1, 40, 3000])
def test_slots_hold_the_points_of_their_pillar(count: int) -> None:
    points = cloud(count)
    expected = by_hand(points, GEOMETRY)
    assert count < 3000 or {1, 2, 3, 4} == {len(members) for members in expected.values()}
    pillars = PillarBuilder(GEOMETRY)(points)
    check(pillars, expected, GEOMETRY)
    assert pillars.dropped == 0
    kinds = {name: (array.dtype, array.ndim) for name, array in pillars.inputs().items()}
    index = np.dtype(np.int32)
    assert kinds == {
        "points": (np.dtype(np.float32), 2),
        "point_pillar": (index, 1),
        "pillar_table": (index, 2),
        "bev_table": (index, 2),
    }


def test_too_many_pillars_keep_those_seen_first_and_count_the_rest() -> None:
    points = cloud(500)
    everything = by_hand(points, GEOMETRY)
    first_seen = list(everything)[:30]
    limited = PillarBuilder(dataclasses.replace(GEOMETRY, max_voxels=30))(points)
    check(limited, {cell: everything[cell] for cell in first_seen}, GEOMETRY)
    assert limited.dropped == len(everything) - 30


def test_no_points_give_no_pillars() -> None:
    pillars = PillarBuilder(GEOMETRY)(np.zeros((0, 5), np.float32))
    assert pillars.points_rc.shape == (0, 10)
    assert pillars.pillar_table_nt.shape == (0, 4)
    assert (pillars.bev_table_m1 == 0).all()


@pytest.mark.real
def test_ten_real_sweeps(real_sweeps: np.ndarray) -> None:
    pillars = PillarBuilder(NUSCENES)(real_sweeps)
    assert len(pillars.pillar_table_nt) == 30059
    check(pillars, by_hand(real_sweeps, NUSCENES), NUSCENES)
