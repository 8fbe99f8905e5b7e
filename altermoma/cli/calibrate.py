"""`altermoma calibrate`: int8 ranges of a checkpoint, and which of its layers can be int8."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from altermoma.cli.options import (
    CheckpointOption,
    DataOption,
    EngineChoice,
    Mmdet3dConfigOption,
    RecipeOption,
    TargetOption,
    load_recipe,
    with_engine,
)


def calibrate(  # noqa: PLR0913 - one parameter per option
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    recipe: RecipeOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    target: TargetOption = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", metavar="NAME", help="Recipe: a name of calib/, or a file."),
    ] = None,
    manifest: Annotated[
        str | None, typer.Option("--manifest", metavar="FILE", help="Calibration frames; chosen anew without it.")
    ] = None,
    max_map_drop: Annotated[
        float | None,
        typer.Option(
            "--max-map-drop",
            metavar="POINTS",
            help="Rank layer groups, and search the largest int8 share that costs "
            "at most this much mAP. Without it: ranges only.",
        ),
    ] = None,
    tune_steps: Annotated[
        int | None,
        typer.Option("--tune-steps", metavar="N", help="Fine-tune with rounding; leaves weights to export."),
    ] = None,
) -> None:
    """Choose calibration frames, find int8 ranges on them and, with a budget, which layer groups can be int8."""
    chosen = load_recipe(recipe, data=data, checkpoint=checkpoint, mmdet3d_config=mmdet3d_config)
    given = {
        "recipe": calibration,
        "manifest": manifest,
        "max_map_drop": max_map_drop,
        "tune_steps": tune_steps,
    }
    given = {name: value for name, value in given.items() if value is not None}
    chosen = dataclasses.replace(chosen, calibration=dataclasses.replace(chosen.calibration, **given))  # type: ignore[arg-type]
    chosen = with_engine(chosen, EngineChoice(precision="int8", target=target))
    from altermoma.workflow.sensitivity import calibrate_to_folder

    print(calibrate_to_folder(chosen, out))
