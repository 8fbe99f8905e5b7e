"""Where scoring stands, on disk: a kill costs seconds or one batch, and going on gives the same scores to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from altermoma.errors import PruningError
from altermoma.storage import write_bytes


class Kept:
    """Named sums and weights with the number of batches they hold.

    Args:
        folder: theirs alone; the caller sees to it that what lies there is of the same model, frames and options. None
            keeps nothing.
        every_s: seconds between two files of one name: a small model's batch takes less time than writing it.
    """

    def __init__(self, folder: Path | None = None, every_s: float = 10.0) -> None:
        self._folder, self._every_s = folder, every_s
        self._saved: dict[str, float] = {}

    def within(self, name: str) -> Kept:
        """What is kept in a folder of this one."""
        return Kept(None if self._folder is None else self._folder / name, self._every_s)

    def load(self, name: str) -> tuple[int, dict[str, Tensor]]:
        """Batches done and the tensors after them; 0 and none where nothing was kept."""
        from safetensors import SafetensorError, safe_open

        if self._folder is None or not (path := self._folder / f"{name}.safetensors").is_file():
            return 0, {}
        try:
            with safe_open(path, framework="pt", device="cpu") as stream:
                done = int((stream.metadata() or {})["done"])
                return done, {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise PruningError(
                f"{path} is damaged: {error}",
                expected="what an unfinished scoring left",
                remedy=f"delete {self._folder} and run again",
            ) from error

    def save(self, name: str, done: int, tensors: Mapping[str, Tensor]) -> None:
        """Replaces what is kept under the name, whole or not at all, unless that was done a moment ago."""
        from safetensors.torch import save

        now = time.monotonic()
        if self._folder is not None and now - self._saved.get(name, -math.inf) >= self._every_s:
            self._saved[name] = now
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            write_bytes(self._folder / f"{name}.safetensors", save(plain, metadata={"done": str(done)}))
