"""`altermoma eval`: mAP and NDS of a checkpoint or a bundle."""

from __future__ import annotations

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


def evaluate(  # noqa: PLR0913 - one parameter per option
    *,
    recipe: RecipeOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    device: DeviceOption = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="Evaluate a bundle instead of a torch checkpoint.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        typer.Option("--engine", help="Precision of the bundle to run; fp32 without it."),
    ] = None,
    backend: Annotated[
        Literal["onnxruntime", "tensorrt"] | None,
        typer.Option(help="Runtime of the bundle; onnxruntime without it."),
    ] = None,
) -> None:
    """Score the validation split with the official nuScenes detection evaluation.

    A bundle is scored on the splits and sweeps that it was made with, unless a recipe is given.
    """
    _check_choice(bundle, of_checkpoint=checkpoint or mmdet3d_config or device, of_bundle=precision or backend)
    chosen = load_recipe(recipe, data=data, checkpoint=checkpoint, mmdet3d_config=mmdet3d_config, device=device)
    from altermoma.workflow.single import evaluate_bundle, evaluate_checkpoint, with_data_of

    if bundle is None:
        metrics = evaluate_checkpoint(chosen)
    else:
        chosen = chosen if recipe else with_data_of(chosen, bundle)
        metrics = evaluate_bundle(chosen, bundle, backend or "onnxruntime", precision or "fp32")
    print(f"mAP {metrics['mAP']:.4f}  NDS {metrics['NDS']:.4f}  on {metrics['frames']} frames")
    for name, ap in metrics["per_class_ap"].items():
        print(f"  {name:<22}{ap:.4f}")
    if "mIoU" in metrics:
        print(f"map mIoU {metrics['mIoU']:.4f}, each class at its best threshold")
        for name, iou in metrics["map_iou"].items():
            print(f"  {name:<22}{iou:.4f}")


def _check_choice(bundle: Path | None, *, of_checkpoint: Path | str | None, of_bundle: str | None) -> None:
    """Options that would be passed over without a word."""
    if bundle is not None and of_checkpoint is not None:
        raise RecipeError(
            f"--bundle together with {of_checkpoint}, which is for a checkpoint",
            expected="a checkpoint, perhaps with --device; or a bundle, perhaps with --engine and --backend",
            remedy="give either --bundle or --checkpoint",
        )
    if bundle is None and of_bundle is not None:
        raise RecipeError(
            f"{of_bundle} without a bundle: checkpoints are scored in torch, in fp32",
            expected="--engine and --backend with --bundle",
            remedy="export the checkpoint first (altermoma export), or leave the option out",
        )
