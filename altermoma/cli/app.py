"""`altermoma`: the steps of `altermoma-export` one by one."""

from __future__ import annotations

from typing import Annotated

import typer

import altermoma
from altermoma.cli import (
    bench,
    build,
    calibrate,
    convert,
    data,
    debug,
    evaluate,
    experiment,
    export,
    lint,
    prune,
    report,
    tables,
    train,
)
from altermoma.cli.console import new_app, run_app

app = new_app(
    "Prune, export and deploy camera-LiDAR fusion detectors step by step. `altermoma-export` does all of it at once."
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(altermoma.__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("convert")(convert.convert)
app.command("prune")(prune.prune)
app.command("calibrate")(calibrate.calibrate)
app.command("export")(export.export)
app.command("lint")(lint.lint)
app.command("build")(build.build)
app.command("bench")(bench.bench)
app.command("debug-precision")(debug.debug_precision)
app.command("eval")(evaluate.evaluate)
app.command("experiment")(experiment.experiment)
app.command("report")(report.report)
app.add_typer(tables.app, name="tables")


def main() -> None:
    """Entry point of `altermoma`."""
    run_app(app)


if __name__ == "__main__":  # as torchrun starts it
    main()
