"""`altermoma train`: train a preset, or fine-tune what another step left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from altermoma.cli.options import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    Mmdet3dConfigOption,
    RecipeOption,
    load_recipe,
)
from altermoma.errors import RecipeError
from altermoma.progress import first_process


def train(  # noqa: PLR0913 - one parameter per option
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the run. A killed run continues in the same folder.")
    ],
    recipe: RecipeOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    device: DeviceOption = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start with random weights instead of a checkpoint.")
    ] = False,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Dense weights that the checkpoint was pruned from: the model is held against their maps too.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps, instead of the recipe's [finetune] steps.")
    ] = None,
    masked: Annotated[
        Literal["none", "camera", "lidar"] | None, typer.Option(help="Branch that hands zeros to the fusion.")
    ] = None,
) -> None:
    """Train with the recipe's [finetune] settings and write `model.safetensors` and a log to the folder.

    Starts from `--checkpoint` (dense or pruned: the widths are those of the file), from the package's weights, or from
    nothing with `--from-scratch`. Started by torchrun, several processes share each batch (docs/training.md).
    """
    if from_scratch and checkpoint is not None:
        raise RecipeError(
            "--from-scratch together with --checkpoint",
            expected="random weights, or those of a file",
            remedy="leave one of them out; the recipe's `model` says what is trained from scratch",
        )
    if from_scratch and teacher is not None:
        raise RecipeError(
            "--teacher together with --from-scratch",
            expected="a teacher of a pruned checkpoint",
            remedy="name the pruned weights with --checkpoint",
        )
    chosen = load_recipe(recipe, data=data, checkpoint=checkpoint, mmdet3d_config=mmdet3d_config, device=device)
    training = chosen.finetune
    training = dataclasses.replace(
        training,
        steps=training.steps if steps is None else steps,
        masked=training.masked if masked is None else masked,
    )
    chosen = dataclasses.replace(chosen, finetune=training)
    from altermoma.workflow.single import train_model

    file = train_model(chosen, out, from_scratch=from_scratch, teacher=teacher)
    if first_process():
        print(file)
