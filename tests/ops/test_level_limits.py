"""More voxels than a level of the sparse encoder accepts: the nearest stay, the rest is counted, nothing breaks."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy_tables import NumpySparseTables
from synthetic_inputs import ring_calibration

from altermoma.geometry import Geometry, ImageGeometry
from altermoma.ops.prepare import FramePreparer, dropped_warning
from altermoma.ops.sparse_tables import SparseTableBuilder, level_shapes, segment_names

GEOMETRY = Geometry(
    image=ImageGeometry(height=32, width=64), point_range=(-4.0, -4.0, -3.0, 4.0, 4.0, 3.0), depth_bins=(1.0, 5.0, 1.0)
)
LIMITED = dataclasses.replace(GEOMETRY, level_rows=(300, 120))


def rows(tables: dict[str, np.ndarray], level: int) -> int:
    """Voxels of a level: each sees itself at least, rows of empty segments see none."""
    names = segment_names(f"subm_table_{level}")
    nothing = max(int(tables[name].max()) for name in names)
    return sum(int((tables[name] < nothing).any(axis=1).sum()) for name in names)


def test_levels_keep_the_nearest_and_count_the_others() -> None:
    shape = level_shapes(GEOMETRY)[0]
    keys = np.sort(np.random.default_rng(0).choice(int(np.prod(shape)), 900, replace=False)).astype(np.int64)
    builder, whole = SparseTableBuilder(LIMITED), NumpySparseTables(GEOMETRY)
    _, tables = builder.build(keys)
    reached = len(whole.whole(keys)["down_table_0"])
    assert rows(tables, 0) == 900
    assert rows(tables, 1) == 300 < reached
    assert rows(tables, 2) <= 120
    assert builder.dropped >= reached - 300
    # The grids are clean again: the next frame is as if it were the first.
    few = keys[:40]
    _, again = builder.build(few)
    _, fresh = SparseTableBuilder(GEOMETRY).build(few)
    assert builder.dropped == 0
    for name, table in fresh.items():
        np.testing.assert_array_equal(again[name], table, err_msg=name)


def test_what_is_dropped_is_farther_than_what_stays() -> None:
    builder = SparseTableBuilder(LIMITED)
    cells = np.stack(np.meshgrid(np.arange(20), np.arange(20), [1], indexing="ij")).reshape(3, -1).astype(np.int32)
    kept = builder._within_limit(1, cells)
    metres = np.hypot(*(-4.0 + (cells[:2] + 0.5) * 0.4))
    near = set(map(tuple, cells.T[np.argsort(metres, kind="stable")[:300]].tolist()))
    assert set(map(tuple, kept.T.tolist())) == near
    assert builder.dropped == 100


def test_a_crowded_frame_is_prepared_and_says_so() -> None:
    rng = np.random.default_rng(1)
    columns = [rng.uniform(low, high, 5000) for low, high in ((-4, 4), (-4, 4), (-3, 3), (0, 255), (0, 0.1))]
    points = np.stack(columns, 1).astype(np.float32)
    preparer = FramePreparer(LIMITED)
    preparer.prepare_parts(np.zeros((6, 32, 64, 3), np.uint8), points, ring_calibration())
    assert preparer.dropped_voxels > 0
    assert "300, 120" in dropped_warning(preparer.dropped_voxels, LIMITED)
