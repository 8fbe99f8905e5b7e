"""A stand-in for CUDA that runs nothing before it must, and that sees every access without a required order.

Device memory is host memory. Work is queued per stream and done as late as the caller's synchronisation allows, so that
a result that is read too early, or a page-locked buffer that is written too early, is wrong. Beside that, vector clocks
record what happens before what: two accesses to the same bytes, one of them writing, must be ordered by a stream, an
event or the host, whatever the real timing is. Memory is freed with the object that owns it, as it really is, its place
is never given again, and whatever touches it afterwards is an error.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from altermoma.deploy.cuda_driver import nothing_collected
from altermoma.errors import EngineError, UnsupportedError

Range = tuple[int, int]
Clock = dict[int, int]
HOST = 0


FREED = 0xDD
"""What freed memory holds."""


class RaceError(AssertionError):
    """Two accesses that nothing orders, or one to memory that is not there or not there any more."""


@dataclass
class Work:
    """Something queued: what it does, and which bytes it reads and writes."""

    name: str
    run: Callable[[], None]
    reads: list[Range]
    writes: list[Range]


class Captured(list[Work]):
    """A graph. It holds nothing of what its work touches; `spoilt` says why there will be none."""

    spoilt = ""


class Buffer:
    """Device memory; freed when no longer referenced."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


@dataclass
class Access:
    name: str
    place: Range
    writing: bool
    stream: int
    number: int


@dataclass
class Event:
    stream: int = HOST
    clock: Clock = field(default_factory=dict)
    done: bool = True


def merged(*clocks: Clock) -> Clock:
    return {key: max(clock.get(key, 0) for clock in clocks) for key in {k for clock in clocks for k in clock}}


def overlap(first: Range, second: Range) -> bool:
    return first[0] < second[0] + second[1] and second[0] < first[0] + first[1]


class FakeCuda:
    """The surface of `altermoma.deploy.cuda_driver.Cuda`. `log` lists what was queued as (stream, name).

    `kernels` gives the functions of a module: name -> callable (threads, arguments) that runs on host memory, and the
    arguments that it writes to.
    """

    def __init__(self, kernels: Any = None) -> None:
        self.gpu = SimpleNamespace(name="Test GPU", compute_capability="8.7", driver="12.6")
        self.log: list[tuple[int, str]] = []
        self.replays = 0
        self._kernels = kernels
        self._blocks: dict[int, tuple[np.ndarray[Any, Any], int]] = {}
        # Kept, so that nothing new comes to lie at an address that was freed.
        self._freed: list[np.ndarray[Any, Any]] = []
        self._events: dict[int, Event] = {}
        self._queues: dict[int, deque[Callable[[], None]]] = {}
        self._clocks: dict[int, Clock] = {HOST: {}}
        # The last access of every stream, reading and writing, to every range: earlier ones come before it.
        self._accesses: dict[Range, dict[tuple[int, bool], Access]] = {}
        self._captured: dict[int, Captured] = {}
        self._next = 0x7000
        self.stream = self.new_stream()

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def enter(self) -> None:
        return None

    def new_stream(self) -> int:
        stream = self._handle()
        self._queues[stream], self._clocks[stream] = deque(), {}
        return stream

    def new_event(self) -> int:
        event = self._handle()
        self._events[event] = Event()
        return event

    def device_buffer(self, size: int) -> Any:
        address = self._allocate(size, 0xAB)
        made = Buffer(address, size)
        weakref.finalize(made, self._free, address)
        return made

    def pinned(self, size: int) -> np.ndarray[Any, Any]:
        address = self._allocate(size, 0xCD)
        block = (ctypes.c_uint8 * max(size, 1)).from_address(address)
        weakref.finalize(block, self._free, address)
        return np.asarray(block, np.uint8)

    def held_bytes(self) -> int:
        """Memory that was not freed yet, on the device and page-locked."""
        return sum(size for _, size in self._blocks.values())

    def _allocate(self, size: int, byte: int) -> int:
        block = np.full(max(size, 1) + 256, byte, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self._blocks[address] = block, max(size, 1)
        return address

    def _free(self, address: int) -> None:
        """A free in the thread that captures is forbidden: it spoils what is being captured, and frees nothing."""
        for captured in self._captured.values():
            captured.spoilt = "memory was freed"
        if not self._captured:
            block, _ = self._blocks.pop(address)
            block[:] = FREED
            self._freed.append(block)

    def bytes_at(self, address: int, size: int) -> np.ndarray[Any, Any]:
        """Memory by address, of which no byte may be outside of an allocation."""
        self._block_of(address, size)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def _block_of(self, address: int, size: int) -> Range:
        """The allocation around some bytes."""
        for begin, (_, length) in self._blocks.items():
            if begin <= address and address + size <= begin + length:
                return begin, length
        raise RaceError(f"{size} bytes at {address:#x} are not allocated, or not any more")

    def record(self, event: int, stream: int) -> None:
        found = self._events[event] = Event(stream, merged(self._clocks[stream], self._clocks[HOST]), done=False)

        def come() -> None:
            found.done = True

        self._queues[stream].append(come)

    def wait(self, stream: int, event: int) -> None:
        found = self._events[event]
        self._clocks[stream] = merged(self._clocks[stream], found.clock)
        self._queues[stream].append(lambda: self._drain(found))

    def wait_here(self, event: int) -> None:
        found = self._events[event]
        self._drain(found)
        self._settle(found.clock)

    def synchronise(self, stream: int | None = None) -> None:
        queue = self._queues[stream or self.stream]
        while queue:
            queue.popleft()()
        self._settle(self._clocks[stream or self.stream])

    def elapsed_ms(self, first: int, second: int) -> float:
        assert self._events[first].done, "an event that has not come has no time"
        assert self._events[second].done, "an event that has not come has no time"
        return 1.0

    def upload(self, address: int, host: np.ndarray[Any, Any], size: int, stream: int | None = None) -> None:
        then, captured, source = host[:size].copy(), self.capturing(stream or self.stream), host.ctypes.data

        def copy() -> None:
            now = self.bytes_at(source, size)
            if not captured and not np.array_equal(then, now):
                raise RaceError("the host wrote to page-locked memory that a copy had yet to read")
            self.bytes_at(address, size)[:] = now

        self.queue(stream, "upload", copy, reads=[(source, size)], writes=[(address, size)])

    def download(self, host: np.ndarray[Any, Any], address: int, size: int, stream: int | None = None) -> None:
        target = host.ctypes.data

        def copy() -> None:
            self.bytes_at(target, size)[:] = self.bytes_at(address, size)

        self.queue(stream, "download", copy, reads=[(address, size)], writes=[(target, size)])

    def fill(self, address: int, byte: int, size: int, stream: int | None = None) -> None:
        def fill() -> None:
            self.bytes_at(address, size)[:] = byte

        self.queue(stream, "fill", fill, reads=[], writes=[(address, size)])

    def load_kernels(self, image: bytes) -> Any:
        if self._kernels is None:
            raise UnsupportedError("this stand-in of a GPU runs no kernels")
        return self._kernels(image)

    def launch(self, function: Any, threads: int, arguments: Sequence[Any], stream: int | None = None) -> None:
        held = [type(value)(value.value) for value in arguments]
        used = [self._reach(value.value) for value in held if isinstance(value, ctypes.c_uint64)]
        writes = [place for place, writing in zip(used, function.writing, strict=True) if writing]
        reads = [place for place, writing in zip(used, function.writing, strict=True) if not writing]
        self.queue(stream, function.name, lambda: function(threads, held), reads=reads, writes=writes)

    def _reach(self, address: int) -> Range:
        """A pointer tells neither begin nor end: a kernel may touch all of the allocation that it points into."""
        return self._block_of(address, 1) if address else (0, 0)

    def capturing(self, stream: int) -> bool:
        return stream in self._captured

    def capture(self, stream: int, work: Callable[[], None]) -> Captured:
        with nothing_collected():
            self._captured[stream] = Captured()
            try:
                work()
            finally:
                found = self._captured.pop(stream)
        if found.spoilt:
            raise EngineError(f"the work on a stream cannot be captured: {found.spoilt}")
        return found

    def graph_of(self, stream: int) -> Captured:
        """What is being captured on a stream."""
        return self._captured[stream]

    def replay(self, graph: Captured, stream: int) -> None:
        self.replays += 1
        for work in graph:
            self.queue(stream, work.name, work.run, reads=work.reads, writes=work.writes)

    def queue(
        self, stream: int | None, name: str, run: Callable[[], None], *, reads: list[Range], writes: list[Range]
    ) -> None:
        """Queues work, and holds it against everything that touched the same bytes."""
        stream = stream or self.stream
        work = Work(name, run, reads, writes)
        if stream in self._captured:
            self._captured[stream].append(work)
            return
        clock = merged(self._clocks[stream], self._clocks[HOST])
        clock[stream] = clock.get(stream, 0) + 1
        self._clocks[stream] = clock
        for place, writing in [*((p, False) for p in reads), *((p, True) for p in writes)]:
            self._require([place], name)
            self._check(Access(name, place, writing, stream, clock[stream]), clock)
        self.log.append((stream, name))
        self._queues[stream].append(lambda: self._do(work))

    def _do(self, work: Work) -> None:
        self._require([*work.reads, *work.writes], work.name)
        work.run()

    def _require(self, places: list[Range], name: str) -> None:
        try:
            for address, size in places:
                if size:
                    self._block_of(address, size)
        except RaceError as error:
            raise RaceError(f"{name}: {error}") from None

    def forget(self) -> None:
        """Drops what is under way and what was accessed, after a test that broke the order on purpose."""
        for queue in self._queues.values():
            queue.clear()
        self._accesses.clear()

    def _check(self, new: Access, clock: Clock) -> None:
        for place, found in self._accesses.items():
            if place == new.place or overlap(place, new.place):
                for old in found.values():
                    if (old.writing or new.writing) and clock.get(old.stream, 0) < old.number:
                        raise RaceError(f"nothing orders {old.name} and {new.name}, which share memory")
        self._accesses.setdefault(new.place, {})[new.stream, new.writing] = new

    def _drain(self, event: Event) -> None:
        while not event.done:
            self._queues[event.stream].popleft()()

    def _settle(self, clock: Clock) -> None:
        """What the host has waited for is before everything that comes."""
        self._clocks[HOST] = merged(self._clocks[HOST], clock)
        known = self._clocks[HOST]
        left = {
            place: {key: access for key, access in found.items() if access.number > known.get(access.stream, 0)}
            for place, found in self._accesses.items()
        }
        self._accesses = {place: found for place, found in left.items() if found}
