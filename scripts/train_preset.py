"""Trains a preset on a nuScenes-like world and writes the checkpoint with the log that documents it.

Single-modality teachers first, then the fusion model that starts from both, as the paper does:

    python scripts/train_preset.py --world W --masked lidar  --steps 600 --out runs/camera
    python scripts/train_preset.py --world W --masked camera --steps 600 --out runs/lidar
    python scripts/train_preset.py --world W --steps 1500 --init camera=runs/camera/model.safetensors \
        --init lidar=runs/lidar/model.safetensors --out runs/dense

A killed run goes on where it stopped when the same line is given again.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import platform
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from altermoma.checkpoints.io import load_checkpoint, save_checkpoint
from altermoma.data.augment import Augment
from altermoma.data.dataset import FrameDataset
from altermoma.data.nuscenes import NuScenesReader
from altermoma.errors import AltermomaError, CheckpointError, RecipeError
from altermoma.evaluation.nuscenes_eval import DetectionMetrics, evaluate
from altermoma.evaluation.predict import predict
from altermoma.frames import Frame
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build
from altermoma.progress import say
from altermoma.recipe import DataRecipe, TrainRecipe
from altermoma.storage import read_json, sha256_of, write_json
from altermoma.training.log import read_log
from altermoma.training.loop import StepReport, train

LOG_POINTS = 100


@dataclasses.dataclass(frozen=True)
class WithoutLidar:
    """Frames whose cloud is empty: a camera that gets no LiDAR depth either."""

    reader: NuScenesReader

    def read(self, token: str) -> Frame:
        frame = self.reader.read(token)
        return dataclasses.replace(frame, points_p5=frame.points_p5[:0])


CACHE_MIB = 3000


class Masked(str, enum.Enum):
    """Branch that is replaced by zeros during training and evaluation."""

    none = "none"
    camera = "camera"
    lidar = "lidar"


class Schedule(str, enum.Enum):
    one_cycle = "one-cycle"
    cosine = "cosine"


def load_parts(model: FusionModel, sources: list[str]) -> list[dict[str, str]]:
    """Loads `PATH` (everything) or `PARTITION=PATH` (that partition only), in order; returns what was loaded."""
    loaded = []
    own = model.state_dict()
    for source in sources:
        partition, sign, path = source.rpartition("=")
        if sign and partition not in ("camera", "lidar", "fusion"):
            raise RecipeError(f"--init {source}", expected="PATH, camera=PATH, lidar=PATH or fusion=PATH")
        state, _ = load_checkpoint(Path(path))
        chosen = {k: v for k, v in state.items() if not sign or model.partition_of(k) == partition}
        alien = [k for k, v in chosen.items() if k not in own or own[k].shape != v.shape]
        if alien:
            raise CheckpointError(f"{path} does not fit this preset: {alien[0]} and {len(alien) - 1} more")
        own |= chosen
        loaded.append({"partition": partition or "all", "sha256": sha256_of(Path(path))})
    model.load_state_dict(own)
    return loaded


class Evaluator:
    """Scores weights on the validation split and keeps the results by step."""

    def __init__(
        self,
        preset: str,
        reader: NuScenesReader,
        frames: NuScenesReader | WithoutLidar,
        masked: Masked,
        *,
        every: int,
        record: Path,
    ) -> None:
        self.model, self.reader, self.masked, self.every = build(preset), reader, masked, every
        self.record = record
        self.split = DataRecipe().val_split
        self.dataset = FrameDataset(frames, reader.tokens(self.split), self.model.config.geometry)
        self.history: list[dict[str, Any]] = read_json(record) if record.is_file() else []

    def score(self, model: FusionModel) -> DetectionMetrics:
        return evaluate(self.reader, self.split, predict(model, self.dataset, masked=self.masked.value))

    def on_step(self, report: StepReport) -> None:
        if not self.every or report.step % self.every or report.step == report.steps:
            return
        self.model.load_state_dict(dict(report.weights()))
        metrics = self.score(self.model)
        # A resumed run comes by some steps again.
        self.history = [entry for entry in self.history if entry["step"] < report.step]
        self.history.append({"step": report.step, "mAP": metrics.mAP, "NDS": metrics.NDS})
        write_json(self.record, self.history)
        say(f"step {report.step}: mAP {metrics.mAP:.4f}, NDS {metrics.NDS:.4f}")


def json_ready(value: Any) -> Any:
    """Figures that are not finite (errors of a class without detections) become null."""
    if isinstance(value, dict):
        return {k: json_ready(v) for k, v in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else None


def condensed(log: Path) -> list[dict[str, float]]:
    """The step log as at most LOG_POINTS means, small enough to ship."""
    lines = read_log(log)
    pieces = np.array_split(np.arange(len(lines)), LOG_POINTS)
    result = []
    for piece in pieces:
        rows = [lines[i] for i in piece]
        if rows:
            means = {k: round(float(np.mean([row[k] for row in rows])), 6) for k in rows[0] if k != "step"}
            result.append({"step": rows[-1]["step"], **means})
    return result


def main(  # noqa: PLR0913 - one argument per command-line option
    *,
    world: Annotated[Path, typer.Option(help="nuScenes-like root with splits mini_train and mini_val.")],
    out: Annotated[Path, typer.Option(help="Folder for state, log and checkpoint.")],
    masked: Annotated[Masked, typer.Option(help="Branch to leave out: a single-modality model.")] = Masked.none,
    steps: int = 1000,
    batch: int = 2,
    lr: float = 2e-3,
    init: Annotated[list[str] | None, typer.Option(help="PATH, or camera=/lidar=/fusion=PATH; repeatable.")] = None,
    threads: int = 2,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations; 0 evaluates at the end only.")] = 0,
    schedule: Schedule = Schedule.one_cycle,
    warmup_share: float = 0.2,
    weight_decay: float = 0.01,
    grad_clip: float = 10.0,
    ema_decay: float = 0.99,
    match_radius: Annotated[float, typer.Option(help="Metres; 0 matches at any distance.")] = 4.0,
    depth_weight: Annotated[float, typer.Option(help="Of the camera branch's depth supervision.")] = 0.5,
    augment: bool = True,
    checkpoint_every: int = 50,
    seed: int = 0,
    preset: str = "bevfusion-tiny",
    train_split: Annotated[
        str, typer.Option(help="Of the world; evaluation is on mini_val.")
    ] = DataRecipe().train_split,
    lidar_off: Annotated[bool, typer.Option(help="Feed empty clouds: cameras without LiDAR depth.")] = False,
) -> None:
    """Trains a preset and evaluates it on mini_val."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    recipe = TrainRecipe(
        steps=steps,
        batch_size=batch,
        lr=lr,
        weight_decay=weight_decay,
        warmup_share=warmup_share,
        grad_clip=grad_clip,
        schedule=schedule.value,
        augment=augment,
        masked=masked.value,
        ema_decay=ema_decay,
        match_radius=match_radius,
        depth_weight=depth_weight,
        checkpoint_every=checkpoint_every,
        seed=seed,
    )
    try:
        reader = NuScenesReader(world, DataRecipe().version, DataRecipe().sweeps)
        start = init or []
        run(recipe, reader, train_split, out=out, preset=preset, init=start, eval_every=eval_every, lidar_off=lidar_off)
    except AltermomaError as error:
        say(str(error))
        raise typer.Exit(error.exit_code) from error


def run(  # noqa: PLR0913 - one argument per command-line option
    recipe: TrainRecipe,
    reader: NuScenesReader,
    train_split: str,
    *,
    out: Path,
    preset: str,
    init: list[str],
    eval_every: int,
    lidar_off: bool,
) -> None:
    """One training with its evaluation; writes model.safetensors and model.json into `out`."""
    model = build(preset)
    loaded = load_parts(model, init)
    tokens = reader.tokens(train_split)
    frames = WithoutLidar(reader) if lidar_off else reader
    dataset = FrameDataset(
        frames, tokens, model.config.geometry, Augment() if recipe.augment else None, cache_mib=CACHE_MIB
    )
    evaluator = Evaluator(
        preset, reader, frames, Masked(recipe.masked), every=eval_every, record=out / "evaluations.json"
    )
    result = train(model, dataset, recipe, folder=out, on_step=evaluator.on_step)
    metrics = evaluator.score(result.model)
    record = {
        "preset": preset,
        "recipe": dataclasses.asdict(recipe),
        "init": loaded,
        "data": {
            "train_split": train_split,
            "train_frames": len(dataset),
            "val_frames": len(evaluator.dataset),
            "sweeps": reader.sweeps,
            "lidar_off": lidar_off,
        },
        "metrics": json_ready(dataclasses.asdict(metrics)),
        "evaluations": evaluator.history,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "training_seconds": round(sum(line["seconds"] for line in read_log(result.log)), 1),
    }
    save_checkpoint(out / "model.safetensors", result.model.state_dict(), record)
    write_json(out / "model.json", record | {"log": condensed(result.log)})
    say(f"mAP {metrics.mAP:.4f}, NDS {metrics.NDS:.4f}: {out / 'model.safetensors'}")
    for name, value in metrics.per_class_ap.items():
        say(f"  {name:<22} AP {value:.4f}")


if __name__ == "__main__":
    typer.run(main)
