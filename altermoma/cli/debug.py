"""`altermoma debug-precision`: the first layer of a stage that leaves its tolerance, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from altermoma.errors import ExportError
from altermoma.recipe import Precision, StageName


def debug_precision(  # noqa: PLR0913 - one parameter per option
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    *,
    stage: Annotated[StageName, typer.Option("--stage", help="Stage to look into.")],
    engine: Annotated[Precision, typer.Option("--engine", help="Precision to look at.")] = "fp16",
    backend: Annotated[
        Literal["onnxruntime", "tensorrt"],
        typer.Option("--backend", help="Graphs on the CPU, with half precision's roundings; or engines on a GPU."),
    ] = "onnxruntime",
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0.0, help="Largest difference; the bundle's if not given."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Bundle whose fp32 graph is the yardstick, instead of its own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Every layer as JSON.")] = None,
) -> None:
    """Compare a stage with its fp32 graph, layer by layer on the bundle's reference frame, and name the first one off.

    Ends with exit code 1 where a layer leaves the tolerance.
    """
    from altermoma.report.layers import layer_table
    from altermoma.storage import write_json
    from altermoma.workflow.debug import debug_precision as run

    found = run(bundle, stage, engine, backend=backend, tolerance=tolerance, against=against)
    if out is not None:
        write_json(out, found.to_dict())
    print(layer_table(found))
    if found.first is not None:
        raise ExportError(
            found.verdict,
            expected=f"differences up to {found.tolerance:.0e} of the largest number",
            remedy="name the node in fp32_nodes of the stage contract and export again, or export fp32",
        )
    print(found.verdict)
