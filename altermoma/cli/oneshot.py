"""`altermoma-export`: everything from a trained detector to a checked bundle, in one command."""

from __future__ import annotations

from altermoma.cli.console import new_app, run_app
from altermoma.cli.options import (
    Budget,
    BuildOption,
    ChannelsOption,
    CheckpointOption,
    DataOption,
    DeviceOption,
    EngineChoice,
    FlopsOption,
    Mmdet3dConfigOption,
    OutOption,
    ParamsOption,
    PrecisionOption,
    RecipeOption,
    SparsityOption,
    TargetOption,
    load_recipe,
    with_budget,
    with_engine,
)

app = new_app("")


@app.command()
def export(  # noqa: PLR0913 - one parameter per option
    *,
    recipe: RecipeOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    device: DeviceOption = None,
    prune_flops: FlopsOption = None,
    prune_channels: ChannelsOption = None,
    prune_params: ParamsOption = None,
    sparsity: SparsityOption = None,
    engine: PrecisionOption = None,
    target: TargetOption = None,
    build: BuildOption = None,
    out: OutOption = None,
) -> None:
    """Prune a trained camera-LiDAR detector with AlterMOMA, export it, check it, and leave a bundle for the vehicle.

    Steps: data, dense evaluation, scoring and pruning, fine-tuning, evaluation, ONNX export at the precision asked for,
    engines where a GPU with TensorRT is, evaluation and timing of what was exported, bundle, report. Each is kept when
    done: killed and started again, the same command continues where it was.

    Leaves `bundle/`, `report.html` and `summary.json` in `--out` (by default `runs/<recipe>-<time>`).

    Exit codes: 0 done; 1 data, checkpoint, export or storage; 2 an option that cannot be honoured; 3 engines were
    required and could not be built.
    """
    chosen = load_recipe(recipe, data=data, checkpoint=checkpoint, mmdet3d_config=mmdet3d_config, device=device)
    chosen = with_budget(chosen, Budget(flops=prune_flops, channels=prune_channels, params=prune_params))
    chosen = with_engine(chosen, EngineChoice(precision=engine, sparsity=sparsity, target=target, build=build))
    from altermoma.workflow.oneshot import run

    run(chosen, out)


def main() -> None:
    """Entry point of `altermoma-export`."""
    run_app(app)
