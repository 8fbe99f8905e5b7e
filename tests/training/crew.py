"""Processes that stay for a whole test module, joined by gloo, and call what they are told to."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Crew:
    """`size` processes; use as a context manager. What they are to call must be importable by name."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> Crew:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._lines, self._members = [], []
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            member = context.Process(target=_work, args=(rank, self.size, port, theirs), daemon=True)
            member.start()
            self._lines.append(ours)
            self._members.append(member)
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.send(None)
        for member in self._members:
            member.join(20)
            if member.is_alive():
                member.terminate()

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What the function returns, or the error it raises, in each process."""
        for line in self._lines:
            line.send((function, args))
        results = []
        for rank, line in enumerate(self._lines):
            if not line.poll(100):
                raise TimeoutError(f"process {rank} does not answer")
            results.append(line.recv())
        return results

    def results(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What the function returns in each process; an error in one of them is raised here."""
        found = self.call(function, *args)
        for result in found:
            if isinstance(result, BaseException):
                raise result
        return found


def _work(rank: int, size: int, port: int, line: Connection) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    import torch

    from altermoma.models.ranks import process_group

    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        while (order := line.recv()) is not None:
            function, args = order
            try:
                answer = function(*args)
                pickle.dumps(answer)
            except Exception as error:  # handed over
                text = traceback.format_exc()
                answer = RuntimeError(f"{type(error).__name__}: {error}\n{text}")
            line.send(answer)
