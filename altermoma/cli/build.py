"""`altermoma build`: TensorRT engines of a bundle, on the machine that will run them. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from altermoma.cli.options import SparsityOption, unsupported_sparsity
from altermoma.recipe import Precision


def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    *,
    engine: Annotated[
        Precision | None, typer.Option("--engine", help="Precision to build. Without it: every one the bundle holds.")
    ] = None,
    sparsity: SparsityOption = None,
) -> None:
    """Build and verify the engines of a bundle here, and record them in its manifest.

    Ends with exit code 3 where no GPU with TensorRT is, and where an engine is not what was asked for.
    """
    unsupported_sparsity(sparsity)
    from altermoma.deploy.bundle import Bundle
    from altermoma.deploy.self_check import check_bundle
    from altermoma.deploy.tensorrt_backend import engines_here
    from altermoma.deploy.tensorrt_builder import BuildOptions

    opened = Bundle.open(bundle)
    precisions = (engine,) if engine is not None else opened.manifest.precisions
    for precision in precisions:
        opened.stages(precision)
        opened = engines_here(opened, BuildOptions(precision=precision), build="require")  # type: ignore[arg-type]
    check_bundle(opened, "tensorrt").require()
    for record in opened.manifest.engines.built:
        print(f"{record.stage} {record.precision}: {record.file} ({record.size / 1e6:.1f} MB)")
