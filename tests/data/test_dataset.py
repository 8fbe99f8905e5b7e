"""Datasets: what is kept, what augmentation means for every input, and an order that can be resumed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from altermoma.data.augment import Augment
from altermoma.data.dataset import FrameDataset, batch_indices, inside, prefetch
from altermoma.data.nuscenes import NuScenesReader
from altermoma.errors import DataError
from altermoma.frames import Frame
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.ops.prepare import FramePreparer

GEOMETRY = Geometry(image=ImageGeometry(height=32, width=64))


class CountingReader:
    """Counts reads."""

    def __init__(self, reader: NuScenesReader) -> None:
        self.reader, self.reads = reader, 0

    def read(self, token: str) -> Frame:
        self.reads += 1
        return self.reader.read(token)


@pytest.fixture
def counting(tiny_nuscenes: Path) -> CountingReader:
    return CountingReader(NuScenesReader(tiny_nuscenes, "v1.0-mini"))


def _dataset(counting: CountingReader, **options: object) -> FrameDataset:
    return FrameDataset(counting, counting.reader.tokens("mini_train"), GEOMETRY, **options)


def test_kept_frames_equal_frames_read_again(counting: CountingReader) -> None:
    kept, fresh = _dataset(counting), _dataset(counting, cache_mib=0)
    for _ in range(2):
        for index in range(len(kept)):
            expected = FramePreparer(GEOMETRY).prepare(counting.reader.read(kept.tokens[index]))
            for dataset in (kept, fresh):
                sample = dataset[index]
                assert sample.token == dataset.tokens[index]
                assert sample.inputs.keys() == expected.keys()
                for name, array in expected.items():
                    np.testing.assert_array_equal(sample.inputs[name], array)
    assert counting.reads == 4 + 8


def test_cache_stops_at_its_limit(counting: CountingReader) -> None:
    dataset = _dataset(counting, cache_mib=0)
    assert [dataset[0].token, dataset[0].token] == [dataset.tokens[0]] * 2
    assert counting.reads == 2


def test_truth_is_what_can_be_found(counting: CountingReader) -> None:
    dataset = _dataset(counting)
    kept = unseen = 0
    for index, token in enumerate(dataset.tokens):
        truth, points = counting.reader.truth(token)
        centre = truth.geometry_m9[:, :2]
        keep = (np.abs(centre) < 32).all(axis=1) & (points > 0)
        np.testing.assert_array_equal(dataset[index].truth.geometry_m9, truth.geometry_m9[keep])
        kept += int(keep.sum())
        unseen += int((points == 0).sum())
    assert kept > 5
    assert unseen > 0


def test_augmentation_moves_voxels_and_boxes_together(counting: CountingReader) -> None:
    dataset = _dataset(counting, augment=Augment(rotation=0.5))
    for seed in range(4):
        sample = dataset.sample(3, np.random.default_rng(seed))
        matrix = dataset.augment.matrix(np.random.default_rng(seed))
        frame = counting.reader.read(dataset.tokens[3])
        moved = frame.points_p5[:, :3] @ matrix[:3, :3].T.astype(np.float32)
        low, high = np.array(GEOMETRY.point_range[:3]), np.array(GEOMETRY.point_range[3:])
        within = ((moved >= low) & (moved < high)).all(axis=1)
        cells = np.unique(np.floor((moved[within] - low) / GEOMETRY.voxel_size), axis=0)
        assert abs(len(cells) - len(sample.inputs["voxels"])) <= 2  # float32 at a cell's border
        plain = dataset[3]
        np.testing.assert_array_equal(sample.inputs["images"], plain.inputs["images"])
        np.testing.assert_array_equal(sample.inputs["depth"], plain.inputs["depth"])
        everything, points = counting.reader.truth(dataset.tokens[3])
        expected = everything.geometry_m9[points > 0, :3] @ matrix[:3, :3].T
        expected = expected[(np.abs(expected[:, :2]) < 32).all(axis=1)]
        np.testing.assert_allclose(sample.truth.geometry_m9[:, :3], expected, atol=1e-4)
        assert inside(sample.truth, GEOMETRY).all()


def test_batches_are_a_function_of_seed_and_step(counting: CountingReader) -> None:
    dataset = _dataset(counting, augment=Augment())
    whole = list(prefetch(dataset.batch(step, batch_size=3, seed=5) for step in range(6)))
    again = _dataset(counting, augment=Augment())
    resumed = [again.batch(step, batch_size=3, seed=5) for step in (4, 5)]
    for left, right in zip(whole[4:], resumed, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a.token == b.token
            for name in a.inputs:
                np.testing.assert_array_equal(a.inputs[name], b.inputs[name])
    first, second = dataset.batch(0, batch_size=3, seed=5)[0], dataset.batch(0, batch_size=3, seed=6)[0]
    same = first.token == second.token and np.array_equal(first.inputs["voxels"], second.inputs["voxels"])
    assert not same


def test_every_epoch_holds_every_frame_once() -> None:
    flat = np.concatenate([batch_indices(7, 3, 11, step) for step in range(14)])
    epochs = flat.reshape(6, 7)
    for epoch in epochs:
        assert sorted(epoch) == list(range(7))
    assert len({tuple(epoch) for epoch in epochs}) > 1
    np.testing.assert_array_equal(batch_indices(7, 3, 11, 9), flat[27:30])


def test_prefetch_raises_the_errors_of_its_thread() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise DataError("broken frame")

    stream = prefetch(source())
    assert next(stream) == 1
    with pytest.raises(DataError, match="broken frame"):
        next(stream)
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]


def test_prefetch_ends_with_its_consumer() -> None:
    produced = []

    def source() -> Iterator[int]:
        for number in range(1000):
            produced.append(number)
            yield number

    stream = prefetch(source(), depth=2)
    assert [next(stream), next(stream)] == [0, 1]
    stream.close()
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]
    assert len(produced) <= 6


def test_degraded_frames_are_said_once(
    broken_nuscenes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("altermoma.data.dataset.WARNED_FRAMES", 2)
    for path in (broken_nuscenes / "samples" / "CAM_BACK").iterdir():
        path.unlink()
    reader = NuScenesReader(broken_nuscenes, "v1.0-mini")
    few = dataclasses.replace(GEOMETRY, max_voxels=7)
    dataset = FrameDataset(reader, reader.tokens("mini_val"), few)
    samples = [*dataset, *dataset]
    assert all("CAM_BACK is dead" in sample.warnings[0] for sample in samples)
    assert all("voxels beyond the model's 7 were dropped" in sample.warnings[1] for sample in samples)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in lines[:2]] == [f" frame {token}" for token in dataset.tokens[:2]]
    assert "CAM_BACK is dead" in lines[0]
    assert lines[2:] == ["warning: more than 2 frames are degraded; the others are not listed"]


def test_no_tokens_is_an_error(counting: CountingReader) -> None:
    with pytest.raises(DataError, match="no frames"):
        FrameDataset(counting, [], GEOMETRY)


def test_index_out_of_range_is_an_index_error(counting: CountingReader) -> None:
    with pytest.raises(IndexError):
        _dataset(counting)[99]
