"""Work on one stream that becomes a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

from altermoma.deploy.cuda_driver import Cuda, GpuLostError, Graph
from altermoma.errors import EngineError
from altermoma.progress import say

ATTEMPTS = 2
"""At a capture. What another library does in this thread can spoil one that is fine in itself."""


class Line:
    """Work on one stream: queued as it is, then captured, then replayed.

    Attributes:
        captures: how often it was captured.
        refused: why it cannot be captured, as was tried twice; it is queued as it is then.
    """

    def __init__(self, cuda: Cuda, stream: int, work: Callable[[], None], *, name: str) -> None:
        self._cuda, self._stream, self._work, self._name = cuda, stream, work, name
        self._ran = False
        self._graph: Graph | None = None
        self._failed = 0
        self.captures, self.refused = 0, ""

    def run(self) -> None:
        """Queues the work once."""
        if self._graph is None and self._ran and not self.refused:
            self._capture()
        if self._graph is not None:
            self._cuda.replay(self._graph, self._stream)
        else:
            self._work()
            self._ran = True

    def _capture(self) -> None:
        try:
            self._graph = self._cuda.capture(self._stream, self._work)
            self.captures += 1
        except GpuLostError:
            raise
        except EngineError as error:
            # Queued as it is this once, which also brings TensorRT's contexts up to date for the next attempt.
            self._failed += 1
            if self._failed == ATTEMPTS:
                self.refused = error.found
                say(f"{self._name} runs without a CUDA graph: {error.found}")
