"""Buckets: frames share shapes, rooms stay within what engines take, and padding changes no result."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_bundle import GEOMETRY, frame

from altermoma.deploy.buckets import MOST, Buckets, Limits
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.onnxruntime_backend import OnnxRuntimeStage
from altermoma.deploy.pipeline import Pipeline
from altermoma.errors import BundleError
from altermoma.ops.padding import RowCounts
from altermoma.ops.prepare import FramePreparer

LIMITS = Limits(rows=RowCounts(levels=((160, 160, 160, 160),) * 3, out=900), finest=163, sizes={"pool_depth": 20})


def counts(*finest: int, out: int = 50) -> RowCounts:
    mid, low, high, both = finest
    return RowCounts(levels=((mid, low, high, both), (40, 30, 20, 10), (5, 0, 0, 5)), out=out)


def test_a_frame_that_fits_takes_the_bucket_that_is_there() -> None:
    buckets = Buckets(LIMITS)
    first = buckets.rows(counts(20, 20, 20, 20))
    assert buckets.rows(counts(22, 18, 20, 21)) == first
    assert buckets.used == first
    assert buckets.made == 1
    for level, rooms in zip(counts(20, 20, 20, 20).least().levels, first.levels, strict=True):
        assert all(room >= rows for room, rows in zip(rooms, level, strict=True))


def test_rooms_stay_within_the_engines() -> None:
    """163 rows of the finest level in all: the margin is shared out, and a full level has none."""
    for finest in ((40, 40, 40, 40), (160, 0, 0, 0), (157, 1, 1, 1), (1, 1, 1, 60)):
        made = Buckets(LIMITS).rows(counts(*finest))
        assert sum(made.levels[0]) <= 163
        assert all(room >= max(rows, 1) for room, rows in zip(made.levels[0], finest, strict=True))
        assert all(room <= 160 for level in made.levels for room in level)
    assert Buckets(LIMITS).rows(counts(1, 1, 1, 1, out=890)).out == 900


def test_too_large_a_bucket_is_not_taken_and_the_oldest_goes() -> None:
    wide = Limits(rows=RowCounts(levels=((90000,) * 4,) * 3, out=90000), finest=200000, sizes={})
    buckets = Buckets(wide)
    large = buckets.rows(counts(9000, 9000, 9000, 9000))
    small = buckets.rows(counts(500, 500, 500, 500))
    assert small != large
    assert buckets.rows(counts(8000, 9000, 9000, 9000)) == large
    for size in (20000, 30000, 40000):
        buckets.rows(counts(size, size, size, size))
    assert len(buckets.known) == MOST
    assert small not in buckets.known
    assert large in buckets.known


def test_nothing_to_see_has_no_bucket() -> None:
    buckets = Buckets(LIMITS)
    empty = RowCounts(levels=((0, 0, 0, 0),) * 3, out=0)
    assert buckets.rows(empty) == empty
    assert buckets.used is None
    assert not buckets.known


def test_other_sizes_are_rounded_within_their_limit() -> None:
    buckets = Buckets(LIMITS)
    assert [buckets.size("pool_depth", rows) for rows in (1, 16, 17, 20)] == [16, 16, 20, 20]
    assert buckets.size("unknown", 7) == 7


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_padded_tables_give_the_same_boxes(bundle: Bundle, precision: str) -> None:
    stages = bundle.stages(precision)
    limits = Limits.of_stages(stages, GEOMETRY.lidar_levels + 1, pillars=False)
    assert limits.finest == 4000
    buckets = Buckets(limits)
    runners = {name: OnnxRuntimeStage(bundle.graph(record), record) for name, record in stages.items()}
    plain, padded = FramePreparer(GEOMETRY), FramePreparer(GEOMETRY, buckets)
    pipeline = Pipeline(GEOMETRY, runners)
    for seed, points in ((1, 300), (2, 260), (3, 20)):
        of = frame(seed, points)
        wanted, found = pipeline.run_stages(dict(plain.prepare(of))), pipeline.run_stages(dict(padded.prepare(of)))
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert len(padded.prepare(of)["voxels"]) > len(plain.prepare(of)["voxels"])
    assert buckets.made == 2, "300 and 260 points share a bucket"


def test_contracts_without_the_tables_are_named(bundle: Bundle) -> None:
    stages = bundle.stages("fp32")
    lidar = stages["lidar"]
    short = dataclasses.replace(lidar, inputs=tuple(s for s in lidar.inputs if s.name != "out_table"))
    with pytest.raises(BundleError, match="out_table"):
        Limits.of_stages({**stages, "lidar": short}, 3, pillars=False)
