"""Sparse convolution by table against torch's dense conv3d, its tables against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy_tables import NumpySparseTables
from torch import Tensor

from altermoma.errors import RecipeError
from altermoma.geometry import Geometry
from altermoma.ops.functional import gather_conv, rows_to_bev, submanifold_conv
from altermoma.ops.sparse_tables import (
    DOWN,
    DOWN_FLAT,
    SUBMANIFOLD,
    TO_BEV,
    Cells,
    OccupancyGrid,
    SparseTableBuilder,
    Table,
    Window,
    level_shapes,
    segment_names,
)

SHAPE = (9, 7, 6)
FLAT = Geometry(point_range=(0, 0, 0, 9, 7, 5), voxel_size=(1, 1, 1), lidar_levels=1)


def linear(cells: Cells, shape: tuple[int, int, int]) -> np.ndarray:
    return np.ravel_multi_index(tuple(cells), shape)


def tabulate(keys: np.ndarray, window: Window) -> tuple[Table, Cells]:
    """A window's table over the cells `keys`, and the cells of its rows."""
    grid, target = OccupancyGrid(SHAPE), OccupancyGrid(window.out_shape(SHAPE))
    cells = grid.enter(keys)
    outputs = cells if window is SUBMANIFOLD else grid.reach(target, cells, window)
    return grid.table(outputs, window, np.arange(len(keys) + 1, dtype=np.int32)), outputs


def random_voxels(count: int, channels: int) -> tuple[np.ndarray, Tensor, Tensor]:
    rng = np.random.default_rng(3)
    keys = np.sort(rng.choice(int(np.prod(SHAPE)), count, replace=False)).astype(np.int64)
    rows = torch.from_numpy(rng.standard_normal((count, channels)))
    dense = torch.zeros(int(np.prod(SHAPE)), channels, dtype=torch.float64)
    dense[keys] = rows
    return keys, rows, dense.T.reshape(1, channels, *SHAPE)


@pytest.mark.parametrize("window", [SUBMANIFOLD, DOWN, DOWN_FLAT, TO_BEV])
def test_gather_conv_equals_dense_convolution(window: Window) -> None:
    keys, rows, dense = random_voxels(60, 4)
    weight = torch.from_numpy(np.random.default_rng(4).standard_normal((5, *window.kernel, 4)))
    shape_out = window.out_shape(SHAPE)
    expected = F.conv3d(dense, weight.permute(0, 4, 1, 2, 3), stride=window.stride, padding=window.padding)
    assert tuple(expected.shape[2:]) == shape_out
    table, outputs = tabulate(keys, window)
    found = gather_conv(rows, [torch.from_numpy(table)], weight)
    torch.testing.assert_close(found, expected[0].reshape(5, -1).T[linear(outputs, shape_out)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [DOWN, DOWN_FLAT, TO_BEV])
def test_reached_keys_are_the_support_of_the_convolution(window: Window) -> None:
    keys, _, _ = random_voxels(40, 1)
    occupied = torch.zeros(int(np.prod(SHAPE)))
    occupied[keys] = 1
    ones = torch.ones(1, 1, *window.kernel)
    support = F.conv3d(occupied.reshape(1, 1, *SHAPE), ones, stride=window.stride, padding=window.padding)
    _, outputs = tabulate(keys, window)
    np.testing.assert_array_equal(linear(outputs, window.out_shape(SHAPE)), np.flatnonzero(support.numpy() > 0))


def submanifold_tables(keys: np.ndarray) -> tuple[np.ndarray, list[Tensor]]:
    """Order of the rows, and one table per segment, none of them empty."""
    places, tables = SparseTableBuilder(FLAT).build(keys)
    assert places[-1] == len(keys)
    return np.argsort(places[:-1]), [torch.from_numpy(tables[name]) for name in segment_names("subm_table_0")]


def test_segments_together_are_the_whole_convolution() -> None:
    keys, rows, dense = random_voxels(60, 4)
    assert FLAT.sparse_shape == SHAPE
    order, tables = submanifold_tables(keys)
    assert [table.shape[1] for table in tables] == [9, 18, 18, 27]
    assert min(len(table) for table in tables) > 0
    weight = torch.from_numpy(np.random.default_rng(4).standard_normal((5, 3, 3, 3, 4)))
    expected = F.conv3d(dense, weight.permute(0, 4, 1, 2, 3), padding=1)[0].reshape(5, -1).T[keys[order]]
    torch.testing.assert_close(submanifold_conv(rows[order], tables, weight), expected, rtol=0, atol=1e-12)


def test_submanifold_gradient_is_that_of_the_gather() -> None:
    keys, rows, _ = random_voxels(50, 3)
    order, tables = submanifold_tables(keys)
    rows = rows[order].requires_grad_()
    weight = torch.randn(2, 3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r, w: submanifold_conv(r, tables, w), (rows, weight))
    assert torch.autograd.gradgradcheck(lambda r, w: submanifold_conv(r, tables, w), (rows, weight))


def test_a_grid_forgets_the_last_frame() -> None:
    grid = OccupancyGrid((2, 2, 2))
    point = Window(kernel=(1, 1, 1), stride=(1, 1, 1), padding=(0, 0, 0))
    everything = np.stack(np.unravel_index(np.arange(8), (2, 2, 2))).astype(np.int32)
    grid.wipe(grid.enter(np.array([1, 5])))
    grid.enter(np.array([3]))
    assert grid.table(everything, point, np.arange(2, dtype=np.int32)).ravel().tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


def test_a_grid_too_high_for_its_masks_is_refused() -> None:
    OccupancyGrid((1, 1, 61))
    with pytest.raises(RecipeError, match="62 cells along z"):
        OccupancyGrid((1, 1, 62))


@pytest.mark.parametrize("count", [0, 1, 3, 4000])
def test_compiled_tables_equal_those_of_numpy(count: int) -> None:
    geometry = Geometry(voxel_size=(0.5, 0.4, 0.1), lidar_levels=3)
    rng = np.random.default_rng(count)
    builder, reference = SparseTableBuilder(geometry), NumpySparseTables(geometry)
    for _ in range(2):
        # Every height is occupied, the highest too.
        keys = np.sort(rng.choice(int(np.prod(geometry.sparse_shape)), count, replace=False))
        places, found = builder.build(keys)
        expected_places, expected = reference.build(keys)
        np.testing.assert_array_equal(places, expected_places, strict=True)
        assert set(found) == set(expected)
        for name, table in expected.items():
            np.testing.assert_array_equal(found[name], table, err_msg=name, strict=True)


def test_levels_chain_and_the_bev_map_places_every_row() -> None:
    geometry = Geometry()
    shapes = level_shapes(geometry)
    assert shapes == ((320, 320, 21), (160, 160, 11), (80, 80, 5), (80, 80, 2))
    keys = np.sort(np.random.default_rng(0).choice(320 * 320 * 21, 500, replace=False)).astype(np.int64)
    places, tables = SparseTableBuilder(geometry).build(keys)
    assert len(set(places.tolist())) == 501
    for level in range(geometry.lidar_levels):
        after = zip(segment_names(f"down_table_{level}"), segment_names(f"subm_table_{level + 1}"), strict=True)
        for down, subm in after:
            assert len(tables[down]) == len(tables[subm])
        rows = sum(len(tables[name]) for name in segment_names(f"subm_table_{level}"))
        assert max(tables[down].max() for down in segment_names(f"down_table_{level}")) == rows
    rows = len(tables["out_table"])
    bev_table = torch.from_numpy(tables["bev_table"])
    features = torch.arange(1, rows + 1, dtype=torch.float64)[:, None]
    bev = rows_to_bev(features, bev_table, geometry.bev_shape, 1)
    assert bev.shape == (1, 2, 80, 80)
    assert sorted(bev[bev > 0].tolist()) == features[:, 0].tolist()


def test_an_empty_cloud_has_empty_tables() -> None:
    places, tables = SparseTableBuilder(Geometry()).build(np.zeros(0, np.int64))
    assert places.tolist() == [0]
    assert {len(table) for name, table in tables.items() if name != "bev_table"} == {0}
    assert tables["bev_table"].max() == 0
