"""Whole frames of the GPU check: graphs of both buckets, each captured and replayed in turn, are held to the stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_machine import Machine
from tensorrt_double import VERSIONS

from altermoma.deploy import buckets, gpu_check
from altermoma.deploy.gpu_frames import THINNED, TURNS, WHOLE
from altermoma.errors import EngineError

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


@pytest.fixture
def two_buckets(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The toy's clouds are small: without free rows the thinned one is of another bucket."""
    monkeypatch.setattr(buckets, "STEP", 2)
    machine.bundle("dense")
    return machine


def frames(machine: Machine) -> dict[str, Any]:
    """What the step found; the others are left out for their time."""
    folder = machine.folder / "bundles" / "dense"
    variant = gpu_check.Variant(bundle=folder, precision="fp32", folder=machine.out / "dense-fp32")
    gpu_check.check_variant(variant, timing_cache=machine.out / "timing.cache", device="a GPU")
    return dict(variant.read()["steps"]["frame, host"])


def test_both_buckets_are_captured_and_replayed_in_turn(two_buckets: Machine) -> None:
    found = frames(two_buckets)
    assert found["status"] == "passed"
    assert [(turn["cloud"], turn["frames"]) for turn in found["turns"]] == list(TURNS)
    assert [cloud for cloud, _ in TURNS] == [WHOLE, THINNED, WHOLE, THINNED]
    assert max(turn["from_stages"] for turn in found["turns"]) < 1e-5
    assert found["captures"] == {"camera": 1, "lidar": 1, "head": 1}


class LidarStream:
    """Where the LiDAR stage runs and writes, and the graphs of that stream in the order in which they come."""

    def __init__(self, machine: Machine) -> None:
        self.cuda, self.place, self.graphs = machine.cuda, dict[int, tuple[int, int]](), dict[int, list[Any]]()
        self._queue = self.cuda.queue
        self.cuda.queue = self.watch  # type: ignore[method-assign]

    def watch(self, stream: int | None, name: str, run: Any, **places: Any) -> None:
        # Engines that are run one by one have the stream of the whole GPU.
        if name == "engine lidar_bev" and stream not in {None, self.cuda.stream}:
            assert stream is not None
            self.place[stream] = places["writes"][0]
        self._queue(stream, name, run, **places)

    def number(self, graph: Any, stream: int) -> int:
        known = self.graphs.setdefault(stream, [])
        if not any(graph is other for other in known):
            known.append(graph)
        return next(number for number, other in enumerate(known, 1) if other is graph)

    def spoil(self, stream: int) -> None:
        address, size = self.place[stream]

        def spoil() -> None:
            self.cuda.bytes_at(address, size).view(np.float32)[:] += np.float32(1.0)

        self._queue(stream, "spoil", spoil, reads=[], writes=[(address, size)])


def test_a_replay_of_the_second_bucket_that_is_wrong_is_found(two_buckets: Machine) -> None:
    """Queued as it is, the thinned cloud is right: what contexts on one profile may do to one another comes later."""
    cuda, lidar = two_buckets.cuda, LidarStream(two_buckets)
    replay = cuda.replay

    def bent(graph: Any, stream: int) -> None:
        replay(graph, stream)
        if stream in lidar.place and lidar.number(graph, stream) == 2:
            lidar.spoil(stream)

    cuda.replay = bent  # type: ignore[method-assign]
    found = frames(two_buckets)
    assert found["status"] == "failed"
    assert "off those of the engines run one by one" in found["error"]
    assert "wrong in turns: thinned cloud, thinned cloud" in found["error"]
    assert not found["right"]


def test_a_second_bucket_that_cannot_be_captured_is_a_failure(two_buckets: Machine) -> None:
    cuda, lidar, counts = two_buckets.cuda, LidarStream(two_buckets), dict[int, int]()
    capture = cuda.capture

    def refuse(stream: int, work: Any) -> Any:
        counts[stream] = counts.get(stream, 0) + 1
        if stream in lidar.place and counts[stream] > 1:
            raise EngineError("the second graph of this stream is refused")
        return capture(stream, work)

    cuda.capture = refuse  # type: ignore[method-assign]
    found = frames(two_buckets)
    assert found["status"] == "failed"
    assert found["error"].startswith("no CUDA graph for lidar:")
    assert found["right"], "it is timed as it runs"
