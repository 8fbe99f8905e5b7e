"""Whoever reads them, batches are the same; what goes wrong in a reading process is said as here."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_loop import RECIPE, ToyData, objective, run, same, toy

from altermoma import errors
from altermoma.data.augment import Augment
from altermoma.data.dataset import FrameDataset, Sample
from altermoma.data.nuscenes import NuScenesReader
from altermoma.errors import AltermomaError, DataError
from altermoma.geometry import Geometry
from altermoma.models.batch import FrameBatch, collate
from altermoma.models.presets import config_of
from altermoma.progress import busy, say
from altermoma.recipe import ComputeRecipe, TrainRecipe
from altermoma.training.loader import JoinedSamples, Part, joined, training_batches
from altermoma.training.loop import train

CPU = torch.device("cpu")
GEOMETRY: Geometry = config_of("bevfusion-tiny").geometry


def dataset(root: Path) -> FrameDataset:
    reader = NuScenesReader(root, "v1.0-mini", sweeps=2)
    return FrameDataset(reader, reader.tokens("mini_train"), GEOMETRY, augment=Augment())


def batches(frames: FrameDataset, compute: ComputeRecipe, steps: range = range(4)) -> list[list[Part]]:
    return list(training_batches(frames, TrainRecipe(batch_size=2, seed=5), compute, steps, CPU))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_seed_and_step(tiny_nuscenes: Path, workers: int) -> None:
    frames = dataset(tiny_nuscenes)
    found = batches(frames, ComputeRecipe(workers=workers), range(1, 4))
    assert len(found) == 3
    for step, (part,) in zip(range(1, 4), found, strict=True):
        samples = frames.batch(step, batch_size=2, seed=5)
        wanted = collate([sample.inputs for sample in samples], GEOMETRY)
        inputs = joined(part, GEOMETRY)
        assert inputs.size == 2
        assert all(torch.equal(inputs[name], tensor) for name, tensor in wanted.tensors.items())
        assert [sample.token for sample in part] == [sample.token for sample in samples]
        for sample, other in zip(part, samples, strict=True):
            np.testing.assert_array_equal(sample.truth.geometry_m9, other.truth.geometry_m9)


def test_parts_of_a_batch_are_its_frames_in_order(tiny_nuscenes: Path) -> None:
    frames = dataset(tiny_nuscenes)
    (parts,) = batches(frames, ComputeRecipe(accumulate=2), range(1))
    samples = frames.batch(0, batch_size=2, seed=5)
    assert [len(part) for part in parts] == [1, 1]
    for part, sample in zip(parts, samples, strict=True):
        assert torch.equal(joined(part, GEOMETRY)["images"], torch.from_numpy(sample.inputs["images"]))


def test_some_positions_of_a_batch_are_as_in_the_whole(tiny_nuscenes: Path) -> None:
    frames = dataset(tiny_nuscenes)
    whole = frames.batch(3, batch_size=4, seed=1)
    for position, sample in zip((2, 1), frames.batch(3, batch_size=4, seed=1, positions=[2, 1]), strict=True):
        assert sample.token == whole[position].token
        np.testing.assert_array_equal(sample.inputs["images"], whole[position].inputs["images"])
        np.testing.assert_array_equal(sample.inputs["voxels"], whole[position].inputs["voxels"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_frame_that_cannot_be_read_is_named(broken_nuscenes: Path, workers: int) -> None:
    for file in (broken_nuscenes / "samples" / "LIDAR_TOP").iterdir():
        file.write_bytes(file.read_bytes()[:7])
    with pytest.raises(DataError, match="LIDAR_TOP") as caught:
        batches(dataset(broken_nuscenes), ComputeRecipe(workers=workers))
    assert str(caught.value).count("Expected:") == 1
    assert caught.value.remedy


def test_training_with_reading_processes_gives_the_same_weights(tmp_path: Path) -> None:
    with busy("a bar that draws while processes are forked"):
        read = run(tmp_path / "processes", compute=ComputeRecipe(workers=2))
    assert same(read.model, run(tmp_path / "thread").model)


class Dying(ToyData):
    """Ends its process at a step, as the system does when memory runs out."""

    def batch(self, step: int, *, batch_size: int, seed: int, positions: Sequence[int] | None = None) -> list[Sample]:
        if step == 3:
            os._exit(9)
        return super().batch(step, batch_size=batch_size, seed=seed, positions=positions)


def test_a_reading_process_that_dies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AltermomaError, match="reads frames died") as caught:
        train(toy(), Dying(), RECIPE, folder=tmp_path, objective=objective, compute=ComputeRecipe(workers=1))
    assert "compute.workers" in caught.value.remedy


class Talking(ToyData):
    def batch(self, step: int, *, batch_size: int, seed: int, positions: Sequence[int] | None = None) -> list[Sample]:
        say(f"reading {step}")
        return super().batch(step, batch_size=batch_size, seed=seed, positions=positions)


def test_a_reading_process_can_speak_while_this_one_draws(capfd: pytest.CaptureFixture[str]) -> None:
    with busy("drawing"):
        assert len(list(training_batches(Talking(), RECIPE, ComputeRecipe(workers=1), range(3), CPU))) == 3
    assert "reading 2" in capfd.readouterr().err


def test_a_gpu_is_given_pinned_memory(tiny_nuscenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[FrameBatch] = []

    def pin(self: FrameBatch, device: torch.device) -> FrameBatch:
        assert device.type == "cuda"
        pinned.append(self)
        return self

    monkeypatch.setattr(FrameBatch, "pinned", pin)
    reading = training_batches(
        dataset(tiny_nuscenes), TrainRecipe(batch_size=2), ComputeRecipe(accumulate=2), range(1), torch.device("cuda")
    )
    (parts,) = list(reading)
    assert len(pinned) == 2
    assert all(isinstance(part, JoinedSamples) for part in parts)


def kinds(of: type[AltermomaError] = AltermomaError) -> Iterator[type[AltermomaError]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.__module__ == errors.__name__])
def test_errors_come_whole_from_another_process(kind: type[AltermomaError]) -> None:
    for error in (kind("this"), kind("this", expected="that", remedy="do so")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert (copy.found, copy.expected, copy.remedy, str(copy)) == (
            error.found,
            error.expected,
            error.remedy,
            str(error),
        )
