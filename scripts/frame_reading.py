"""What a training frame costs to read, augment, turn into tables and join: processor time of one core.

    python scripts/frame_reading.py --real ../shared/real

The pictures are those of the real nuScenes frame, read from the file cache; the cloud of ten sweeps is in memory.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from altermoma.cli.console import run_app
from altermoma.data.augment import Augment
from altermoma.data.dataset import FrameDataset
from altermoma.data.nuscenes import NuScenesReader
from altermoma.frames import Frame
from altermoma.models.batch import FrameBatch, collate
from altermoma.models.presets import config_of

BATCH, ROUNDS = 2, 7


class TenSweeps(NuScenesReader):
    """The real frame with the cloud of ten sweeps."""

    points_p5: NDArray[np.float32]

    def read(self, token: str) -> Frame:
        return dataclasses.replace(super().read(token), points_p5=self.points_p5)


def mib(batch: FrameBatch) -> float:
    """Of one of its frames."""
    return sum(t.numel() * t.element_size() for t in batch.tensors.values()) / batch.size / (1 << 20)


def main(
    *,
    real: Annotated[Path, typer.Option(metavar="DIR", help="Folder with the real frame and sweeps.")],
    model: Annotated[str, typer.Option(help="Preset.")] = "bevfusion-mit-r50-second",
) -> None:
    """Times the reading of training frames."""
    reader = TenSweeps(real / "nuscenes_one_frame", "v1.0-mini", sweeps=1)
    reader.points_p5 = np.fromfile(real / "nuscenes_ten_sweeps.bin", np.float16).reshape(-1, 5).astype(np.float32)
    geometry = config_of(model).geometry
    frames = FrameDataset(reader, reader.tokens("mysplit"), geometry, augment=Augment(), cache_mib=0)
    frames.batch(0, batch_size=BATCH, seed=0)  # compiles
    rows = []
    for step in range(1, ROUNDS + 1):
        started = time.process_time()
        samples = frames.batch(step, batch_size=BATCH, seed=0)
        read = time.process_time()
        batch = collate([sample.inputs for sample in samples], geometry)
        rows.append((read - started, time.process_time() - read))
    reading, joining = np.median(rows, axis=0) / BATCH
    print(f"{model}: {reading:.3f} s a frame to read and prepare, {joining:.3f} s to join, {mib(batch):.1f} MiB")


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
