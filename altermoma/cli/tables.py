"""`altermoma tables`: a target's milliseconds at several widths, for a budget in them. `measure` needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from altermoma.cli.console import new_app
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
from altermoma.recipe import Precision

app = new_app("Measure stages at several widths on the target, so that pruning counts its milliseconds.")


@app.callback()
def tables() -> None:
    """Measure stages at several widths on the target, so that pruning counts its milliseconds."""


@app.command()
def write(  # noqa: PLR0913 - one parameter per option
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write, to be carried to the target.")],
    recipe: RecipeOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    sparsity: SparsityOption = None,
    engine: PrecisionOption = None,
    target: TargetOption = None,
) -> None:
    """Export the dense model at 100, 75, 50 and 25 % of its channels, a bundle each: what the target is to run.

    They are cut blindly and only to be timed. Go on with `altermoma tables measure DIR` on the target.
    """
    chosen = load_recipe(recipe, data=data, checkpoint=checkpoint, mmdet3d_config=mmdet3d_config)
    chosen = with_engine(chosen, EngineChoice(precision=engine, sparsity=sparsity, target=target))
    from altermoma.workflow.width_bundles import write_widths

    print(write_widths(chosen, out))


@app.command()
def measure(
    folder: Annotated[Path, typer.Argument(help="Folder that `altermoma tables write` left.")],
    *,
    backend: Annotated[Literal["tensorrt", "onnxruntime"], typer.Option(help="Runtime.")] = "tensorrt",
    engine: Annotated[
        Precision | None, typer.Option("--engine", help="Precision. Without it: the one that the bundles are for.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every width.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Turns before, not counted.")] = 2,
) -> None:
    """Build missing engines, time every stage at every width in turn, and leave DIR/latency.json for `[prune]`.

    Ends with exit code 3 where no GPU with TensorRT is; `--backend onnxruntime` measures on the processor.
    """
    from altermoma.deploy.stage_tables import LATENCY_FILE
    from altermoma.deploy.stage_timing import TimingPlan, measure_tables
    from altermoma.report.stage_tables import stage_tables_markdown

    plan = TimingPlan(backend=backend, precision=engine, rounds=rounds, warmup=warmup)
    print(stage_tables_markdown(measure_tables(folder, plan)))
    print(f'\nfor pruning, under [prune] of the recipe: budget = "latency", latency_tables = "{folder / LATENCY_FILE}"')
