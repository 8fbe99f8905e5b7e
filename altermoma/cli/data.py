"""`altermoma data`: make and inspect data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from altermoma.cli.console import new_app
from altermoma.errors import DataError, RecipeError

app = new_app("Make and inspect data sets.")


@app.callback()
def data() -> None:
    """Make and inspect data sets."""


@app.command()
def synth(
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="New folder for the world. Without it: the cache, if not there yet."),
    ] = None,
    scenes: Annotated[int, typer.Option(help="Scenes; the first ten carry the names of nuScenes' mini split.")] = 10,
    seed: Annotated[int, typer.Option(help="Same seed, same world, byte for byte.")] = 7,
    after: Annotated[
        int, typer.Option(min=0, help="Skip as many scenes first: a world of scenes that models of these never saw.")
    ] = 0,
) -> None:
    """Write the synthetic world: cameras, LiDAR and radars in the nuScenes schema, readable by the nuscenes-devkit."""
    from altermoma.data.synth import cached_world, write_world

    if after and out is None:
        raise RecipeError(f"--after {after} without --out", expected="both", remedy="name a new folder")
    if out is None:
        print(cached_world(scenes, seed))
    elif after:
        print(write_world(out, names=_names_after(after, scenes), seed=seed))
    else:
        print(write_world(out, scenes=scenes, seed=seed))


def _names_after(after: int, scenes: int) -> tuple[str, ...]:
    from altermoma.data.synth.splits import scene_names

    try:
        return scene_names(after + scenes if scenes > 0 else scenes)[after:]
    except ValueError as error:
        raise DataError(str(error), expected="fewer scenes", remedy="lower --scenes or --after") from error


@app.command()
def info(
    root: Annotated[Path, typer.Argument(help="Folder of a nuScenes data set.")],
    version: Annotated[str, typer.Option(help="Version folder with the tables.")] = "v1.0-mini",
    split: Annotated[
        str, typer.Option(help="Split whose frames are counted and whose first frame is read.")
    ] = "mini_val",
) -> None:
    """Read a split's tables and its first frame, and say what is there."""
    from altermoma.data.nuscenes import NuScenesReader

    reader = NuScenesReader(root, version)
    tokens = reader.tokens(split)
    frame = reader.read(tokens[0])
    height, width = frame.calibration.image_hw
    print(f"{split}: {len(tokens)} frames; the first, {frame.token} of {frame.scene}, has")
    print(f"  {len(frame.images_vhw3)} cameras of {width} x {height} pixels, {len(frame.points_p5)} LiDAR points,")
    print(f"  {'no annotations' if frame.truth is None else f'{len(frame.truth)} annotated boxes'}")
    for warning in frame.warnings:
        print(f"  warning: {warning}")
