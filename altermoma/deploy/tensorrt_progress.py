"""The phases of a build as progress bars, and a build that ctrl-C ends: TensorRT 10 and later; 8.x tells nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from altermoma.deploy.tensorrt_api import member
from altermoma.progress import counted


class _Phases:
    """Phases under way by name, each shown; `stopped` once the user has asked to end."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._open: dict[str, tuple[ExitStack, Callable[[int], None]]] = {}
        self.stopped = False

    def start(self, name: str, steps: int) -> None:
        self.finish(name)
        stack = ExitStack()
        tell = stack.enter_context(counted(f"{self._stage}: {name}", int(steps) or None))
        self._open[name] = stack, tell

    def step(self, name: str, step: int) -> None:
        if name in self._open:
            self._open[name][1](int(step) + 1)

    def finish(self, name: str) -> None:
        if name in self._open:
            self._open.pop(name)[0].close()

    def close(self) -> None:
        for name in list(self._open):
            self.finish(name)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """An exception must not pass through TensorRT, which would end the process."""
        try:
            yield
        except KeyboardInterrupt:
            self.stopped = True


@contextlib.contextmanager
def shown_progress(trt: Any, config: Any, stage: str) -> Iterator[None]:
    """Shows what the builder does meanwhile, where this version tells.

    Raises:
        KeyboardInterrupt: ctrl-C came while the builder was at work; it has given up.
    """
    base = member(trt, "IProgressMonitor")
    if base is None:
        yield
        return
    phases = _Phases(stage)
    # Held here as well: the builder may keep no more than a pointer.
    monitor = _monitor(base, phases)
    config.progress_monitor = monitor
    try:
        yield
    finally:
        phases.close()
        if phases.stopped:
            # Whatever the builder said on giving up, this is why.
            raise KeyboardInterrupt


def _monitor(base: Any, phases: _Phases) -> Any:
    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with phases.guarded():
                phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with phases.guarded():
                phases.step(phase_name, step)
            return not phases.stopped

        def phase_finish(self, phase_name: str) -> None:
            with phases.guarded():
                phases.finish(phase_name)

    return Monitor()
