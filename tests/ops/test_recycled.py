"""Memory that is used again, and never while somebody still looks at it."""

from __future__ import annotations

import threading

import numpy as np

from altermoma.ops.recycled import RecycledMemory

SHAPE = (300, 100)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_a_piece_comes_back_when_its_array_is_gone() -> None:
    memory = RecycledMemory()
    first = memory.empty(SHAPE, np.float32)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    where = address(first)
    del first
    again = memory.empty((150, 100), np.int64)
    assert address(again) == where
    assert (again.shape, again.dtype) == ((150, 100), np.int64)


def test_a_view_keeps_its_piece() -> None:
    memory = RecycledMemory()
    first = memory.empty(SHAPE, np.int32)
    row = first[7:9].reshape(-1)[::2].view(np.float32)
    row[:] = 5.0
    del first
    second = memory.empty(SHAPE, np.int32)
    second[:] = 1
    assert (row == 5.0).all()
    del row
    assert address(memory.empty(SHAPE, np.int32)) != address(second)


def test_arrays_outlive_their_source() -> None:
    memory = RecycledMemory()
    array = memory.empty(SHAPE, np.float32)
    array[:] = 3.0
    del memory
    assert (array == 3.0).all()


def test_a_much_larger_piece_is_left_for_others() -> None:
    memory = RecycledMemory()
    large = memory.empty((4000, 100), np.float32)
    where = address(large)
    del large
    small = memory.empty(SHAPE, np.float32)
    assert address(small) != where
    assert address(memory.empty((4000, 100), np.float32)) == where


def test_no_more_than_some_unused_pieces_are_kept() -> None:
    memory = RecycledMemory()
    held = [memory.empty(SHAPE, np.float32) for _ in range(100)]
    assert len({address(array) for array in held}) == 100
    held.clear()
    assert len(memory._unused) == 64


def test_other_threads_may_let_go() -> None:
    memory, wrong = RecycledMemory(), []

    def look(array: np.ndarray, value: int) -> None:
        for _ in range(50):
            if not (array == value).all():
                wrong.append(value)

    threads = []
    for value in range(40):
        array = memory.empty(SHAPE, np.int64)
        array[:] = value
        threads.append(threading.Thread(target=look, args=(array, value)))
        threads[-1].start()
        del array
        if value % 8 == 7:
            while threads:
                threads.pop().join()
    assert wrong == []
