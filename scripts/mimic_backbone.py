"""Teaches a camera backbone to give the maps of another one: the pretraining on pictures that is not at hand here.

Backbone and neck of the student learn the neck's output of a trained camera model on the world's pictures; what comes
after the neck is taken over from that model. A transformer that starts from nothing does not find objects by boxes
alone in thousands of steps of two frames; from these maps it starts as good as its teacher.

    python scripts/mimic_backbone.py --world W --train-split synth_train --preset bevfusion-tiny-swin \
        --teacher runs/camera/model.safetensors --steps 1000 --out runs/swin-camera

A killed run goes on where it stopped when the same line is given again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from altermoma.checkpoints.io import load_checkpoint, save_checkpoint
from altermoma.data.augment import Augment
from altermoma.data.dataset import FrameDataset, Sample
from altermoma.data.nuscenes import NuScenesReader
from altermoma.errors import AltermomaError
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build
from altermoma.models.rebuild import load_by_shape
from altermoma.progress import say
from altermoma.recipe import DataRecipe, TrainRecipe
from altermoma.storage import sha256_of, write_json
from altermoma.training.loader import joined
from altermoma.training.log import read_log
from altermoma.training.loop import train
from altermoma.training.losses import LossTerms
from altermoma.workflow.keys import data_key


@dataclass(frozen=True)
class Mimicry:
    """Squared error of the neck's output, in units of the teacher's variance: 1 is as good as a constant."""

    teacher: FusionModel

    def __call__(self, model: FusionModel, samples: Sequence[Sample]) -> LossTerms:
        images = joined(samples, model.config.geometry)["images"]
        with torch.no_grad():
            wanted = neck_maps(self.teacher, images)
        loss = (neck_maps(model, images) - wanted).square().mean() / wanted.var()
        nothing = torch.zeros(())
        return LossTerms(total=loss, heatmap=nothing, classes=nothing, boxes=nothing, matched=0, overlap=0.0)


def neck_maps(model: FusionModel, images: Tensor) -> Tensor:
    """[N, 3, H, W] -> [N, C, h, w]."""
    maps: Tensor = model.img_neck(model.img_backbone(images))
    return maps


def take_over(model: FusionModel, teacher: FusionModel) -> None:
    """Everything after the neck becomes the teacher's, and is not trained."""
    own = model.state_dict()
    for name, tensor in teacher.state_dict().items():
        if not name.startswith(("img_backbone.", "img_neck.")):
            own[name].copy_(tensor)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("img_backbone.", "img_neck.")))


def main(  # noqa: PLR0913 - one argument per command-line option
    *,
    world: Annotated[Path, typer.Option(help="nuScenes-like root.")],
    teacher: Annotated[Path, typer.Option(help="Checkpoint of a trained camera or fusion model.")],
    out: Annotated[Path, typer.Option(help="Folder for state, log and checkpoint.")],
    preset: str = "bevfusion-tiny-swin",
    teacher_preset: str = "bevfusion-tiny",
    train_split: str = DataRecipe().train_split,
    steps: int = 1000,
    batch: int = 2,
    lr: float = 2e-3,
    threads: int = 2,
    seed: int = 0,
) -> None:
    """Trains the camera backbone and neck of a preset on another model's maps."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    recipe = TrainRecipe(steps=steps, batch_size=batch, lr=lr, ema_decay=0.99, seed=seed, distill_weight=0.0)
    try:
        reader = NuScenesReader(world, DataRecipe().version, DataRecipe().sweeps)
        guide, model = build(teacher_preset), build(preset)
        load_by_shape(guide, load_checkpoint(teacher)[0])
        take_over(model, guide)
        tokens = reader.tokens(train_split)
        frames = FrameDataset(reader, tokens, model.config.geometry, Augment(), cache_mib=3000)
        given = {"mimics": sha256_of(teacher), "world": data_key(world, DataRecipe().version)}
        result = train(model, frames, recipe, folder=out, objective=Mimicry(guide.eval()), data=given)
    except AltermomaError as error:
        say(str(error))
        raise typer.Exit(error.exit_code) from error
    losses = [line["total"] for line in read_log(result.log)]
    record = {
        "preset": preset,
        "recipe": dataclasses.asdict(recipe),
        "teacher": {"preset": teacher_preset, "sha256": sha256_of(teacher)},
        "loss": [float(part.mean()) for part in np.array_split(np.array(losses), min(20, len(losses)))],
    }
    write_json(out / "model.json", record)
    save_checkpoint(out / "model.safetensors", result.model.state_dict(), {"preset": preset})
    say(f"relative error {record['loss'][-1]:.3f}: {out / 'model.safetensors'}")


if __name__ == "__main__":
    typer.run(main)
