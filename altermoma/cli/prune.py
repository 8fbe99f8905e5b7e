"""`altermoma prune`: score with AlterMOMA, or what it is compared with, and remove channels, or single weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from altermoma.cli.options import (
    Budget,
    ChannelsOption,
    CheckpointOption,
    DataOption,
    DeviceOption,
    FlopsOption,
    Mmdet3dConfigOption,
    ParamsOption,
    RecipeOption,
    SparsityOption,
    WeightsOption,
    load_recipe,
    with_budget,
    with_sparsity,
)
from altermoma.recipe import Method


def prune(  # noqa: PLR0913 - one parameter per option
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Pruned weights to write, in safetensors.")],
    recipe: RecipeOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    device: DeviceOption = None,
    prune_flops: FlopsOption = None,
    prune_channels: ChannelsOption = None,
    prune_params: ParamsOption = None,
    prune_weights: WeightsOption = None,
    method: Annotated[
        Method | None, typer.Option("--method", help="What scores the channels. Without it: altermoma.")
    ] = None,
    sparsity: SparsityOption = None,
) -> None:
    """Score every channel, remove the least useful ones physically, and write the smaller model.

    With `--prune-weights` single weights become zero in place of that; training keeps them so. It makes nothing faster.

    With `--sparsity 2:4` the weights that remain are made 2:4 then, for sparse tensor cores; training keeps them so.

    It is not fine-tuned: go on with `altermoma train --checkpoint FILE`.
    """
    chosen = load_recipe(recipe, data=data, checkpoint=checkpoint, mmdet3d_config=mmdet3d_config, device=device)
    budget = Budget(flops=prune_flops, channels=prune_channels, params=prune_params, weights=prune_weights)
    chosen = with_budget(chosen, budget)
    if method is not None:
        chosen = dataclasses.replace(chosen, prune=dataclasses.replace(chosen.prune, method=method))
    from altermoma.workflow.single import prune_to_file

    print(prune_to_file(with_sparsity(chosen, sparsity), out))
