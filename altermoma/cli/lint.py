"""`altermoma lint`: would a target's TensorRT take a graph, and compute what it says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from altermoma.cli.options import TargetOption
from altermoma.errors import RecipeError


def lint(
    models: Annotated[list[Path], typer.Argument(help="ONNX files of any origin, or bundles.")],
    *,
    target: TargetOption = None,
    tensorrt: Annotated[
        str | None, typer.Option("--tensorrt", metavar="VERSION", help="Another TensorRT version than the target's.")
    ] = None,
    dla: Annotated[bool, typer.Option("--dla", help="Name what the target's accelerator would not run.")] = False,
) -> None:
    """Check ONNX graphs for a target before it does: operators, forms that are read wrongly, precisions.

    Every finding names the node and what to do. Ends with exit code 1 where a graph would be refused or computed
    wrongly; warnings alone end with 0.
    """
    from altermoma.deploy.targets import load_target
    from altermoma.export.lint import raise_on_errors
    from altermoma.export.lint_target import lint_for, read_graph

    profile = load_target(target or "generic")
    if dla and not profile.dla_cores:
        raise RecipeError(
            f"target {profile.name} has no DLA",
            expected="a target with one, such as orin-jp60",
            remedy="leave out --dla",
        )
    version = tensorrt or profile.tensorrt
    named = [(name, file) for path in models for name, file in _graphs(path)]
    findings = [
        finding
        for name, file in named
        for finding in lint_for(read_graph(file), version, precisions=profile.precisions, stage=name, dla=dla)
    ]
    for finding in findings:
        if finding.severity == "warning":
            print(finding)
    raise_on_errors(findings)
    print(f"{len(named)} of {len(named)} graphs suit {profile.name}, TensorRT {version}")


def _graphs(path: Path) -> list[tuple[str, Path]]:
    """A file by its own name, or what TensorRT is to read of a bundle by precision and stage."""
    if not path.is_dir():
        return [(path.stem, path)]
    from altermoma.deploy.bundle import Bundle

    stages = Bundle.open(path).manifest.stages
    return [
        (f"{precision} {name}", path / record.file)
        for precision, records in stages.items()
        for name, record in records.items()
    ]
