"""`altermoma export`: stage graphs and a bundle from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from altermoma.cli.options import (
    CheckpointOption,
    DataOption,
    EngineChoice,
    Mmdet3dConfigOption,
    PrecisionOption,
    RecipeOption,
    SparsityOption,
    TargetOption,
    load_recipe,
    with_engine,
)


def export(  # noqa: PLR0913 - one parameter per option
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Bundle folder to write.")],
    recipe: RecipeOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    sparsity: SparsityOption = None,
    engine: PrecisionOption = None,
    target: TargetOption = None,
) -> None:
    """Export a checkpoint as it is, dense or pruned, to ONNX stages, check parity with torch, and write a bundle."""
    chosen = load_recipe(recipe, data=data, checkpoint=checkpoint, mmdet3d_config=mmdet3d_config)
    chosen = with_engine(chosen, EngineChoice(precision=engine, sparsity=sparsity, target=target))
    from altermoma.workflow.single import export_to_bundle

    print(export_to_bundle(chosen, out))
