"""The stand-in of CUDA finds what it is there for: memory that was freed, and accesses that nothing orders."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from cuda_double import Captured, FakeCuda, RaceError

from altermoma.deploy.cuda_driver import Cuda
from altermoma.deploy.device_memory import Arena
from altermoma.deploy.graph_line import Line
from altermoma.errors import EngineError

SPECS = {"rows": ((100,), np.dtype(np.int32)), "count": ((1,), np.dtype(np.int32))}


class WriteOne:
    """A kernel that writes to where its only pointer points."""

    name, writing = "write one", (True,)

    def __call__(self, threads: int, arguments: Any) -> None:
        ctypes.c_int32.from_address(arguments[0].value).value = 1


def arena_on(cuda: FakeCuda) -> Arena:
    return Arena(cast(Cuda, cuda), SPECS, mirrored=True)


def write_one(cuda: FakeCuda, address: int, stream: int) -> None:
    cuda.launch(WriteOne(), 1, [ctypes.c_uint64(address)], stream)


WORK: dict[str, Callable[[FakeCuda, Arena], None]] = {
    "fill": lambda cuda, arena: arena.clear("rows", cuda.stream),
    "kernel": lambda cuda, arena: write_one(cuda, arena.address("rows"), cuda.stream),
    "upload": lambda cuda, arena: arena.upload(cuda.stream),
    "download": lambda cuda, arena: arena.download(cuda.stream),
}


def graph_that_outlives_its_arena(cuda: FakeCuda, kind: str) -> Captured:
    """Replayed once while all is well."""
    arena = arena_on(cuda)
    graph = cuda.capture(cuda.stream, lambda: WORK[kind](cuda, arena))
    cuda.replay(graph, cuda.stream)
    cuda.synchronise()
    return graph


@pytest.mark.parametrize("kind", WORK)
def test_a_graph_over_memory_that_was_freed_is_found(kind: str) -> None:
    """Also where something of the same size was made since, which really often gets the same place."""
    cuda = FakeCuda()
    graph = graph_that_outlives_its_arena(cuda, kind)
    another = arena_on(cuda)
    with pytest.raises(RaceError, match="not allocated, or not any more"):
        cuda.replay(graph, cuda.stream)
    assert another.size


def test_memory_freed_under_queued_work_is_found() -> None:
    cuda = FakeCuda()
    arena = arena_on(cuda)
    arena.upload(cuda.stream)
    assert cuda.held_bytes() == 2 * 768
    del arena
    assert cuda.held_bytes() == 0
    with pytest.raises(RaceError, match=r"upload: .* not any more"):
        cuda.synchronise()


def test_a_kernel_on_the_end_of_a_buffer_is_one_on_the_buffer() -> None:
    """A number of rows behind the rows: whoever is given the one may touch the other."""
    cuda = FakeCuda()
    arena, other = arena_on(cuda), cuda.new_stream()
    write_one(cuda, arena.address("rows"), cuda.stream)
    with pytest.raises(RaceError, match="nothing orders"):
        write_one(cuda, arena.address("rows") + 396, other)


def test_a_capture_that_memory_was_freed_in_is_spoilt_and_tried_again() -> None:
    """Once is chance, twice is not: then the work is queued as it is for good, and why is told."""
    cuda = FakeCuda()
    target, doomed = arena_on(cuda), [arena_on(cuda), arena_on(cuda)]

    def work() -> None:
        if cuda.capturing(cuda.stream) and doomed:
            doomed.pop()
        write_one(cuda, target.address("rows"), cuda.stream)

    once = Line(cast(Cuda, cuda), cuda.stream, work, name="rows")
    doomed.pop()
    for _ in range(4):
        once.run()
    assert (once.captures, once.refused, cuda.replays) == (1, "", 2)
    doomed.extend(arena_on(cuda) for _ in range(3))
    twice = Line(cast(Cuda, cuda), cuda.stream, work, name="rows")
    for _ in range(5):
        twice.run()
    assert (twice.captures, "memory was freed" in twice.refused, len(doomed)) == (0, True, 1)
    assert [name for _, name in cuda.log] == ["write one"] * 9


def test_a_spoilt_capture_raises() -> None:
    cuda = FakeCuda()
    doomed = [arena_on(cuda)]
    with pytest.raises(EngineError, match="memory was freed"):
        cuda.capture(cuda.stream, doomed.clear)
