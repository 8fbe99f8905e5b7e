"""`altermoma eval`: mAP and NDS of a checkpoint or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from altermoma.cli.options import CheckpointOption, DataOption, Mmdet3dConfigOption, RecipeOption, load_recipe


def evaluate(  # noqa: PLR0913 - one parameter per option
    *,
    recipe: RecipeOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="DIR", help="Evaluate a bundle instead of a torch checkpoint.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option("--engine", help="Precision of the bundle to run.")
    ] = "fp32",
    backend: Annotated[Literal["onnxruntime", "tensorrt"], typer.Option(help="Runtime of the bundle.")] = "onnxruntime",
) -> None:
    """Score the validation split with the official nuScenes detection evaluation."""
    chosen = load_recipe(recipe, data=data, checkpoint=checkpoint, mmdet3d_config=mmdet3d_config)
    from altermoma.workflow.single import evaluate_bundle, evaluate_checkpoint

    metrics = evaluate_checkpoint(chosen) if bundle is None else evaluate_bundle(chosen, bundle, backend, precision)
    print(f"mAP {metrics['mAP']:.4f}  NDS {metrics['NDS']:.4f}  on {metrics['frames']} frames")
    for name, ap in metrics["per_class_ap"].items():
        print(f"  {name:<22}{ap:.4f}")
