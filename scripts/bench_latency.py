"""Whole frames of bundles and of their torch models, in turn in one process; needs torch. Without: `altermoma bench`.

    python scripts/bench_latency.py runs/dense runs/pruned --torch --out runs/latency
    python scripts/bench_latency.py dense pruned --backend tensorrt --engine fp16 --torch --compile --out runs/latency

The first bundle is what the others are held against. With --torch every bundle's checkpoint (its recipe names it, or
--checkpoints) runs in PyTorch eager on the same device as the engines, in the same precision (fp16 by autocast); with
--compile by torch.compile too. All variants begin with raw sensor arrays and end with boxes on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import typer

from altermoma.checkpoints.io import model_from_checkpoint
from altermoma.cli.console import run_app
from altermoma.deploy.benchmark import Variant
from altermoma.deploy.bundle import Bundle
from altermoma.errors import RecipeError
from altermoma.evaluation.predict import head_arrays
from altermoma.frames import Frame
from altermoma.models.batch import collate
from altermoma.models.fusion import FusionModel
from altermoma.ops.decode import decode
from altermoma.ops.prepare import FramePreparer
from altermoma.progress import say
from altermoma.report.latency import latency_markdown
from altermoma.storage import write_json, write_text
from altermoma.workflow.bundles import BenchPlan, bench_bundles, bundle_names


def torch_variant(model: FusionModel, device: torch.device, *, half: bool, compiled: bool = False) -> Variant:
    """The torch model over whole frames: prepared on the host, as PyTorch code does it, computed on `device`."""
    geometry = model.config.geometry
    preparer = FramePreparer(geometry)
    model = model.eval().to(device)
    forward: Any = torch.compile(model, dynamic=True) if compiled else model

    def run(frame: Frame) -> Mapping[str, float]:
        batch = collate([preparer.prepare(frame)], geometry).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=half):
            # Copying the answer to the host waits for the device.
            decode(head_arrays(forward(batch)), geometry)
        return preparer.timings_ms

    return run


def torch_variants(
    names: list[str], checkpoints: list[Path], device: torch.device, *, half: bool, compiled: bool
) -> dict[str, Variant]:
    """Eager, and if asked compiled, for every checkpoint."""
    variants: dict[str, Variant] = {}
    for name, checkpoint in zip(names, checkpoints, strict=True):
        say(f"loading {checkpoint}")
        variants[f"{name} torch eager"] = torch_variant(model_from_checkpoint(checkpoint), device, half=half)
        if compiled:
            again = model_from_checkpoint(checkpoint)
            variants[f"{name} torch.compile"] = torch_variant(again, device, half=half, compiled=True)
    return variants


def checkpoints_of(folders: list[Path], given: list[Path]) -> list[Path]:
    """Those that were named, else those of the bundles' recipes.

    Raises:
        RecipeError: fewer named than bundles, or a recipe whose checkpoint is not there.
    """
    if given:
        if len(given) != len(folders):
            raise RecipeError(f"{len(given)} checkpoints for {len(folders)} bundles", expected="one for each")
        return given
    found = [Path(str(Bundle.open(folder).manifest.recipe.get("checkpoint", ""))) for folder in folders]
    missing = [str(folder) for folder, path in zip(folders, found, strict=True) if not path.is_file()]
    if missing:
        raise RecipeError(
            f"the checkpoints of {', '.join(missing)} are not here", remedy="name them with --checkpoints, in order"
        )
    return found


def _owners(names: list[str], others: Mapping[str, Variant]) -> dict[str, str]:
    """The bundle that each torch variant belongs to."""
    return {variant: name for variant in others for name in names if variant.startswith(f"{name} torch")}


def main(  # noqa: PLR0913 - one parameter per option
    *,
    bundles: Annotated[list[Path], typer.Argument(help="Bundles that take turns; the dense one first.")],
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option("--engine", help="Of the bundles.")] = "fp32",
    backend: Annotated[Literal["onnxruntime", "tensorrt"], typer.Option(help="Runtime.")] = "onnxruntime",
    preparation: Annotated[Literal["auto", "host", "device"], typer.Option(help="With tensorrt.")] = "auto",
    with_torch: Annotated[bool, typer.Option("--torch", help="The torch models as well.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="With --torch: torch.compile as well.")] = False,
    checkpoints: Annotated[list[Path] | None, typer.Option(help="Of the torch models, in order; repeatable.")] = None,
    gflops: Annotated[
        list[float] | None, typer.Option(help="Of the bundles, in order, where they do not tell.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of the reference frame.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before, not counted.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for latency.json and latency.md.")],
) -> None:
    """Writes latency.json and latency.md."""
    names = bundle_names(bundles)
    torch.set_num_threads(threads)
    device = torch.device("cuda" if backend == "tensorrt" and torch.cuda.is_available() else "cpu")
    others: dict[str, Variant] = {}
    known = dict(zip(names, gflops or [], strict=False))
    if with_torch:
        paths = checkpoints_of(bundles, checkpoints or [])
        half = precision == "fp16" and device.type == "cuda"
        others = torch_variants(names, paths, device, half=half, compiled=compiled)
    plan = BenchPlan(
        backend=backend, precision=precision, preparation=preparation, rounds=rounds, warmup=warmup, threads=threads
    )
    record = bench_bundles(bundles, plan, others=others, gflops=known)
    record["bases"] = {
        variant: names[0] + variant.removeprefix(name) for variant, name in _owners(names, others).items()
    }
    record["torch_device"] = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    told = cast(dict[str, float], record["gflops"])
    told |= {variant: told[name] for variant, name in _owners(names, others).items() if name in told}
    page = latency_markdown(record)
    write_json(out / "latency.json", record)
    write_text(out / "latency.md", page)
    print(page)


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
