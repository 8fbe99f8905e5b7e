"""Options that several commands share, and how they change a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from altermoma import recipe as recipes
from altermoma.errors import RecipeError
from altermoma.progress import say
from altermoma.recipe import Device, Precision, PruneRecipe, Recipe, Sparsity

RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="Recipe in TOML. Without it: the defaults of bevfusion-tiny."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="ROOT",
        help="Folder of a nuScenes data set. Without it: the synthetic world, made on first use and cached.",
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Weights: a .safetensors of ours, or a .pth of mit-han-lab or mmdet3d. Without it: those in the package.",
    ),
]
Mmdet3dConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--mmdet3d-config",
        metavar="FILE",
        help="The mmdet3d configuration that a .pth was trained with: gives model, ranges and sweeps. It is a program "
        "and is run: only give one that you trust.",
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write to.")]
FlopsOption = Annotated[
    float | None,
    typer.Option("--prune-flops", metavar="SHARE", help="Remove this share of the FLOPs, for example 0.5."),
]
ChannelsOption = Annotated[
    float | None, typer.Option("--prune-channels", metavar="SHARE", help="Remove this share of the channels.")
]
ParamsOption = Annotated[
    float | None, typer.Option("--prune-params", metavar="SHARE", help="Remove this share of the parameters.")
]
WeightsOption = Annotated[
    float | None,
    typer.Option("--prune-weights", metavar="SHARE", help="Set this share of single weights to zero; shapes stay."),
]
SparsityOption = Annotated[
    Sparsity | None,
    typer.Option("--sparsity", help="Pattern inside the layers that remain: dense, or 2:4 for sparse tensor cores."),
]
PrecisionOption = Annotated[
    Precision | None, typer.Option("--engine", help="Precision baked into the graphs; int8 calibrates first.")
]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="Target profile of deploy/: generic, orin-jp62, thor-jp70, ..."),
]
DeviceOption = Annotated[
    Device | None,
    typer.Option("--device", help="Where torch computes: auto (a GPU where torch has one), cpu or cuda."),
]
AT_FULL_SIZE = "recipe of a model at full size: no fine-tuning here; see docs/checkpoints.md"
BudgetKind = Literal["flops", "channels", "params", "latency", "weights"]
BuildOption = Annotated[
    Literal["auto", "require", "never"] | None,
    typer.Option("--build", help="Engines: build where possible, require them (else exit 3), or never."),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """The ways to say how much to prune; at most one is given."""

    flops: float | None = None
    channels: float | None = None
    params: float | None = None
    weights: float | None = None

    def apply(self, recipe: PruneRecipe) -> PruneRecipe:
        every: tuple[tuple[BudgetKind, float | None], ...] = (
            ("flops", self.flops),
            ("channels", self.channels),
            ("params", self.params),
            ("weights", self.weights),
        )
        given = {name: share for name, share in every if share is not None}
        if not given:
            return recipe
        if len(given) > 1:
            options = " and ".join(f"--prune-{name}" for name in given)
            raise RecipeError(f"{options} together", expected="one budget", remedy="keep one of them")
        ((name, share),) = given.items()
        if not 0 <= share < 1:
            raise RecipeError(
                f"--prune-{name} {share:g}", expected="a share, at least 0 and below 1", remedy="0.5 is half"
            )
        return dataclasses.replace(recipe, budget=name, amount=share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineChoice:
    precision: Precision | None = None
    sparsity: Sparsity | None = None
    target: str | None = None
    build: Literal["auto", "require", "never"] | None = None


def load_recipe(
    path: Path | None,
    *,
    data: Path | None = None,
    checkpoint: Path | None = None,
    mmdet3d_config: Path | None = None,
    device: Device | None = None,
) -> Recipe:
    """The recipe of a command: the file or the defaults, with paths from the command line on top.

    An mmdet3d configuration names the model and the sweeps, whatever the recipe says; its checkpoint is converted. Its
    model is of full size: so are the defaults, where no recipe is given.
    """
    recipe = recipes.load(path) if path is not None else Recipe()
    if data is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=str(data)))
    if checkpoint is not None:
        recipe = dataclasses.replace(recipe, checkpoint=str(checkpoint))
    if device is not None:
        recipe = dataclasses.replace(recipe, compute=dataclasses.replace(recipe.compute, device=device))
    if mmdet3d_config is None:
        return recipe
    if path is None:
        say(AT_FULL_SIZE)
        recipe = recipes.at_full_size(recipe)
    return _adapted(recipe, mmdet3d_config)


def _adapted(recipe: Recipe, config: Path) -> Recipe:
    if not recipe.checkpoint:
        raise RecipeError(
            "--mmdet3d-config without a checkpoint",
            expected="the .pth of that training",
            remedy="add --checkpoint FILE.pth",
        )
    from altermoma.checkpoints.adopt import converted

    file, adopted = converted(Path(recipe.checkpoint), config)
    return dataclasses.replace(
        recipe,
        name=adopted.preset if recipe.name == recipe.model else recipe.name,
        model=adopted.preset,
        checkpoint=str(file),
        data=dataclasses.replace(
            recipe.data, sweeps=adopted.sweeps or recipe.data.sweeps, repeat_key=adopted.repeat_key
        ),
    )


def with_budget(recipe: Recipe, budget: Budget) -> Recipe:
    return dataclasses.replace(recipe, prune=budget.apply(recipe.prune))


def with_engine(recipe: Recipe, choice: EngineChoice) -> Recipe:
    given = {name: value for name, value in dataclasses.asdict(choice).items() if value is not None}
    recipe = dataclasses.replace(recipe, engine=dataclasses.replace(recipe.engine, **given))
    check_supported(recipe)
    return recipe


def with_sparsity(recipe: Recipe, sparsity: Sparsity | None) -> Recipe:
    if sparsity is None:
        return recipe
    return dataclasses.replace(recipe, engine=dataclasses.replace(recipe.engine, sparsity=sparsity))


def check_supported(recipe: Recipe) -> None:
    """Says at once, before any work, what the target cannot do: the precision asked for, or a builder option."""
    from altermoma.deploy.targets import load_target
    from altermoma.deploy.tensorrt_config import settled

    target = load_target(recipe.engine.target)
    target.require_builder(settled(target.builder, recipe.builder))
    target.step(recipe.engine.precision)
