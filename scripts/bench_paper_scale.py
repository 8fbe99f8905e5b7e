"""Latency of the bundles that `paper_scale_table.py` exported: dense and pruned interleaved, one thread, whole frames.

    python scripts/bench_paper_scale.py --preset bevfusion-mit-r101-second --data ../shared/real --runs runs/paper \\
        --variants dense --variants pruned-31.2 --variants pruned-56.7

Every round runs the frame (ten sweeps) through every variant, in an order that rotates, and is added to the file: a
bench that was cut off goes on, and more rounds can be added later. Beside the wall clock it takes the processor time of
the process, which other jobs on the machine disturb less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from paper_scale_steps import Data, Preset, Runs, real_frame

from altermoma.deploy.benchmark import FRAME, conditions, pinned_threads
from altermoma.deploy.pipeline import Pipeline, Stopwatch
from altermoma.frames import Frame
from altermoma.ops.decode import decode
from altermoma.progress import track
from altermoma.storage import read_json, write_json

T = TypeVar("T")


class BothClocks(Stopwatch):
    """Wall clock and processor time by part."""

    def __init__(self) -> None:
        super().__init__()
        self.processor_ms: dict[str, float] = {}

    def time(self, part: str, work: Callable[[], T]) -> T:
        started = time.process_time()
        result = super().time(part, work)
        self.processor_ms[part] = (time.process_time() - started) * 1e3
        return result


def run_frame(pipeline: Pipeline, frame: Frame) -> dict[str, dict[str, float]]:
    """Milliseconds by part, `host` and `frame` among them, by both clocks."""
    watch = BothClocks()

    def whole() -> None:
        inputs, _ = watch.time("host", lambda: pipeline.prepare(frame.images_vhw3, frame.points_p5, frame.calibration))
        outputs = pipeline.run_stages(inputs, watch)
        watch.time("decode", lambda: decode(outputs, pipeline.geometry))

    watch.time(FRAME, whole)
    return {"wall": watch.ms, "processor": watch.processor_ms}


def main(
    *,
    preset: Preset,
    data: Data,
    runs: Runs,
    variants: Annotated[list[str], typer.Option(help="Bundles to run: dense, pruned-56.7 and so on; repeatable.")],
    rounds: Annotated[int, typer.Option(help="Measured passes over all variants.")] = 5,
) -> None:
    """Adds rounds to <runs>/<preset>/bench.json."""
    folder = runs / preset
    file = folder / "bench.json"
    frame = real_frame(data)
    with pinned_threads(1):
        pipelines = {name: Pipeline.from_bundle(folder / f"{name}-fp32", threads=1) for name in variants}
        # Twice: ONNX Runtime plans its memory by the first run, and maps it in the second.
        for pipeline in track([*pipelines.values()] * 2, "warm-up"):
            run_frame(pipeline, frame)
        for number in track(range(rounds), "rounds"):
            record: dict[str, Any] = read_json(file) if file.is_file() else {"rounds": []}
            turn = number % len(variants)
            found = {name: run_frame(pipelines[name], frame) for name in variants[turn:] + variants[:turn]}
            record["rounds"].append({"variants": found, "conditions": conditions(1)})
            write_json(file, record)


if __name__ == "__main__":
    typer.run(main)
