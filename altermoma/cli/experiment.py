"""`altermoma experiment`: the tables of the paper on a model of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from altermoma.cli.options import CheckpointOption, DataOption, DeviceOption
from altermoma.progress import say

if TYPE_CHECKING:
    from altermoma.experiments.recipe import ExperimentRecipe


def experiment(  # noqa: PLR0913 - one parameter per option
    name: Annotated[str, typer.Argument(metavar="NAME", help="table1, table5, ... of the package, or a TOML file.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of tables and cells; what is done there is kept.")
    ] = Path("runs/experiments"),
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds 0, 1, ..., instead of the recipe's number.")] = None,
    minutes: Annotated[
        float, typer.Option(help="Begin no cell after so many minutes, and report what is done; 0 does all.")
    ] = 0.0,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="A few cells of a few steps, to see that everything runs.")
    ] = False,
    analysis: Annotated[
        bool, typer.Option("--analysis", help="No cells, but a page on what the indicators see in the model.")
    ] = False,
) -> None:
    """Run methods x amounts x seeds, and write the table as Markdown, JSON and a page with plots.

    Every cell is scored, cut, fine-tuned and evaluated once. Killed and run again, it goes on where it stopped.
    """
    from altermoma.experiments.recipe import load_experiment

    recipe = load_experiment(name)
    recipe = recipe.as_reduced() if reduced else recipe
    if data is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=str(data)))
    if checkpoint is not None:
        recipe = dataclasses.replace(recipe, checkpoint=str(checkpoint))
    if device is not None:
        recipe = dataclasses.replace(recipe, device=device)
    if seeds is not None:
        recipe = dataclasses.replace(recipe, seeds=seeds)
    if analysis:
        _analyse(recipe, out, Path(name).stem)
        return
    from altermoma.experiments.front import front_html, front_json, front_markdown, front_of
    from altermoma.experiments.page import table_page
    from altermoma.experiments.run import run_experiment
    from altermoma.experiments.table import tabulate, to_json, to_markdown
    from altermoma.storage import check_writable, write_json, write_text

    file = out / f"{Path(name).stem}{'-reduced' if reduced else ''}.md"
    check_writable(file)
    outcome = run_experiment(recipe, out, minutes=minutes)
    table, front = tabulate(outcome), front_of(outcome)
    text = to_markdown(table) + (f"\n{front_markdown(front)}" if front else "")
    write_text(file, text)
    write_json(file.with_suffix(".json"), to_json(table) | ({"front": front_json(front)} if front else {}))
    write_text(file.with_suffix(".html"), table_page(table, [front_html(front)] if front else []))
    say(text)
    print(file.with_suffix(".html"))


def _analyse(recipe: ExperimentRecipe, out: Path, stem: str) -> None:
    from altermoma.experiments.analyse_run import run_analysis
    from altermoma.storage import check_writable

    file = out / f"{stem}-analysis.html"
    check_writable(file)
    run_analysis(recipe, out, file)
    print(file)
