"""`altermoma build`: TensorRT engines of a bundle, on the machine that will run them. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from altermoma.cli.options import SparsityOption
from altermoma.recipe import BuilderRecipe, HardwareLevel, Precision, from_dict

LevelOption = Annotated[
    int, typer.Option("--optimization-level", min=-1, max=5, help="0 to 5, from TensorRT 8.6; -1: its own choice.")
]
WorkspaceOption = Annotated[
    int, typer.Option("--workspace-mib", min=0, help="Limit of scratch memory; 0: TensorRT's own.")
]
DramOption = Annotated[
    int, typer.Option("--tactic-dram-mib", min=0, help="Limit of device memory for one tactic, from 8.6.")
]
SharedOption = Annotated[
    int, typer.Option("--tactic-shared-kib", min=0, help="Limit of shared memory for one tactic, from 10.")
]
HardwareOption = Annotated[
    HardwareLevel, typer.Option("--hardware-compatible", help="Other GPUs that the plans also run on.")
]
DlaOption = Annotated[
    list[str] | None,
    typer.Option("--dla", help="Stage to put on a deep-learning accelerator; may be given several times."),
]


def build(  # noqa: PLR0913 - one parameter per option
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    *,
    engine: Annotated[
        Precision | None, typer.Option("--engine", help="Precision to build. Without it: every one the bundle holds.")
    ] = None,
    sparsity: SparsityOption = None,
    optimization_level: LevelOption = -1,
    workspace_mib: WorkspaceOption = 0,
    tactic_dram_mib: DramOption = 0,
    tactic_shared_kib: SharedOption = 0,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let fp32 layers compute in TF32.")] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plans also load in later versions of the same major.")
    ] = False,
    hardware_compatible: HardwareOption = "none",
    dla: DlaOption = None,
    dla_core: Annotated[int, typer.Option("--dla-core", min=0, help="Which accelerator.")] = 0,
    gpu_fallback: Annotated[
        bool, typer.Option("--gpu-fallback", help="What the accelerator lacks runs on the GPU, and is named.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Weights of an engine can be exchanged.")] = False,
    strip: Annotated[
        bool, typer.Option("--strip", help="Plans without weights; the bundle's graphs have them. From TensorRT 10.")
    ] = False,
) -> None:
    """Build and verify the engines of a bundle here, and record them in its manifest.

    Options that are not given are those of the recipe that made the bundle, else of its target (`[builder]` in both).

    Ends with exit code 3 where no GPU with TensorRT is, and where an engine is not what was asked for.
    """
    from altermoma.workflow.bundles import build_bundle

    asked = BuilderRecipe(
        optimization_level=optimization_level,
        workspace_mib=workspace_mib,
        tactic_dram_mib=tactic_dram_mib,
        tactic_shared_kib=tactic_shared_kib,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla_stages=from_dict(BuilderRecipe, {"dla_stages": dla or []}, "builder.").dla_stages,
        dla_core=dla_core,
        gpu_fallback=gpu_fallback,
        refit=refit,
        strip=strip,
    )
    print(build_bundle(bundle, asked, precision=engine, sparsity=sparsity))
