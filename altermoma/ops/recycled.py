"""Memory of arrays that is used again once nothing refers to it.

A frame's arrays take tens of megabytes. Fresh from the operating system, every 4 KiB of them cost a page fault, which
takes longer than most of what is then written there.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Kind = TypeVar("Kind", bound=np.generic)

_KEPT = 64
"""Unused pieces that are kept; with more, the oldest is freed."""
_SMALL = 1 << 16
"""Bytes below which the allocator has memory at hand anyway."""


class RecycledMemory:
    """Hands out arrays. A piece comes back when the last array or view that shows it is gone, on whatever thread."""

    def __init__(self) -> None:
        # Only single appends and pops, which threads may mix freely.
        self._unused: deque[NDArray[np.uint8]] = deque(maxlen=_KEPT)

    def empty(self, shape: tuple[int, ...], dtype: type[Kind]) -> NDArray[Kind]:
        """As np.empty: C-contiguous, its numbers whatever they are."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _SMALL:
            return np.empty(shape, dtype)
        piece = self._piece(size)
        loan = _Loan(piece)
        weakref.finalize(loan, self._unused.append, piece).atexit = False
        return np.asarray(loan)[:size].view(dtype).reshape(shape)

    def _piece(self, size: int) -> NDArray[np.uint8]:
        """An unused piece of about this size, or a new one with some room to grow."""
        for _ in range(len(self._unused)):
            try:
                piece = self._unused.popleft()
            except IndexError:
                break
            if size <= piece.nbytes <= size + size // 2:
                return piece
            self._unused.append(piece)
        return np.empty(size + size // 8, np.uint8)


class _Loan:
    """What arrays name as the owner of their memory: it lives as long as any of them."""

    def __init__(self, piece: NDArray[np.uint8]) -> None:
        self.__array_interface__: dict[str, Any] = piece.__array_interface__
