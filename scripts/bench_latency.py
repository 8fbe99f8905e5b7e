"""Whole frames of bundles and of their torch models, in turn in one process; needs torch. Without: `altermoma bench`.

    python scripts/bench_latency.py runs/dense runs/pruned --torch --out runs/latency
    python scripts/bench_latency.py dense pruned --backend tensorrt --engine fp16 --torch --compile --out runs/latency
    python scripts/bench_latency.py dense pruned --torch-device cuda --engine fp16 --compile --out runs/torch \
        --beside runs/gpu_check/result.json

The first bundle is what the others are held against. With --torch every bundle's checkpoint (its recipe names it, or
--checkpoints) runs in PyTorch eager on the same device as the engines, in the same precision (fp16 by autocast); with
--compile by torch.compile too. All variants begin with raw sensor arrays and end with boxes on the host.

With --torch-device no engine runs at all: torch and TensorRT seldom fit into one Python. Of the bundles only the
manifest and the reference frame are read, and neither TensorRT nor ONNX Runtime is needed. --beside sets the times
beside those that `scripts/gpu_check.py` took of engines on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import torch
import typer

from altermoma.checkpoints.io import model_from_checkpoint
from altermoma.cli.console import run_app
from altermoma.deploy.benchmark import Variant, run_benchmark
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.pipeline import Stopwatch
from altermoma.deploy.telemetry import machine, sampled
from altermoma.errors import RecipeError, UnsupportedError
from altermoma.evaluation.predict import head_arrays
from altermoma.frames import Frame
from altermoma.models.batch import collate
from altermoma.models.fusion import FusionModel
from altermoma.ops.decode import decode
from altermoma.ops.prepare import FramePreparer
from altermoma.progress import say
from altermoma.report.beside_torch import NETWORK, beside_torch
from altermoma.report.latency import latency_markdown
from altermoma.storage import read_json, write_json, write_text
from altermoma.workflow.bundles import BenchPlan, bench_bundles, bundle_gflops, bundle_names

T = TypeVar("T")


def torch_variant(model: FusionModel, device: torch.device, *, half: bool, compiled: bool = False) -> Variant:
    """The torch model over whole frames: prepared on the host, as PyTorch code does it, computed on `device`.

    Parts: those of the preparation; `copies`, frames joined and copied to the device; `network`, from inputs there to
    outputs there; `decode`, which copies these back.
    """
    geometry = model.config.geometry
    preparer = FramePreparer(geometry)
    model = model.eval().to(device)
    forward: Any = torch.compile(model, dynamic=True) if compiled else model

    def waited(work: Callable[[], T]) -> T:
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    def run(frame: Frame) -> Mapping[str, float]:
        inputs = preparer.prepare(frame)
        watch = Stopwatch(preparer.timings_ms)
        batch = watch.time("copies", lambda: waited(lambda: collate([inputs], geometry).to(device)))
        with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=half):
            outputs = watch.time(NETWORK, lambda: waited(lambda: forward(batch)))
            watch.time("decode", lambda: decode(head_arrays(outputs), geometry))
        return watch.ms

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


def torch_alone(
    folders: list[Path], variants: Mapping[str, Variant], device: torch.device, *, rounds: int, warmup: int
) -> dict[str, Any]:
    """Times torch variants on the reference frame of the first bundle, without any engine.

    A variant that does not run, as compiled code on machines without a compiler, is left out and told under `failed`;
    the first one, which the others are held against, has to.

    Returns:
        As `bench_bundles`, with `model`, `failed` and `torch_device`.
    """
    names = bundle_names(folders)
    bundles = {name: Bundle.open(folder) for name, folder in zip(names, folders, strict=True)}
    first = bundles[names[0]]
    frame = first.reference().frame(first.manifest.name)
    failed: dict[str, str] = {}
    for name, variant in variants.items():
        say(f"first frame of {name}")
        try:
            variant(frame)
        except Exception as error:
            if not failed and name == next(iter(variants)):
                raise
            failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            say(f"{name} does not run: {failed[name]}")
    gpu: dict[str, Any] = {}
    threads = torch.get_num_threads()
    with sampled(gpu):
        able = {name: variant for name, variant in variants.items() if name not in failed}
        result = run_benchmark(able, [frame], rounds=rounds, warmup=warmup, threads=threads)
    gflops = {name: found for name, bundle in bundles.items() if (found := bundle_gflops(bundle))}
    return result.to_dict() | {
        "model": str(first.manifest.recipe.get("model", first.manifest.name)),
        "dense": next(iter(variants)),
        "gflops": gflops,
        "gpu": gpu,
        "machine": machine(),
        "markdown": result.to_markdown(),
        "points": len(frame.points_p5),
        "failed": failed,
    }


def torch_device(asked: str, precision: str) -> torch.device:
    """Where the torch models run without engines.

    Raises:
        UnsupportedError: no such device here, or a precision that torch does not run there.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            "torch finds no GPU here", expected="a torch for this machine's CUDA", remedy="give --torch-device cpu"
        )
    served = ("fp32", "fp16") if asked == "cuda" else ("fp32",)
    if precision not in served:
        raise UnsupportedError(f"{precision} in torch on {asked}", expected=" or ".join(served))
    # Frames are all of one size, for which eager users let cuDNN choose its kernels by trial.
    torch.backends.cudnn.benchmark = asked == "cuda"
    return torch.device(asked)


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
    alone: Annotated[
        Literal["none", "cuda", "cpu"], typer.Option("--torch-device", help="The torch models there, and no engines.")
    ] = "none",
    beside: Annotated[
        Path | None, typer.Option(help="With --torch-device: result.json of gpu_check, of the same machine.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured runs of the reference frame.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before, not counted.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for latency.json and latency.md.")],
) -> None:
    """Writes latency.json and latency.md."""
    names = bundle_names(bundles)
    torch.set_num_threads(threads)
    if alone == "none":
        device = torch.device("cuda" if backend == "tensorrt" and torch.cuda.is_available() else "cpu")
    else:
        device = torch_device(alone, precision)
    others: dict[str, Variant] = {}
    if with_torch or alone != "none":
        paths = checkpoints_of(bundles, checkpoints or [])
        half = precision == "fp16" and device.type == "cuda"
        others = torch_variants(names, paths, device, half=half, compiled=compiled)
    known = dict(zip(names, gflops or [], strict=False))
    if alone == "none":
        plan = BenchPlan(
            backend=backend, precision=precision, preparation=preparation, rounds=rounds, warmup=warmup, threads=threads
        )
        record = bench_bundles(bundles, plan, others=others, gflops=known)
    else:
        record = torch_alone(bundles, others, device, rounds=rounds, warmup=warmup)
        record["gflops"] |= known
        record["precision"] = precision
    bases = {variant: names[0] + variant.removeprefix(name) for variant, name in _owners(names, others).items()}
    record["bases"] = {variant: base for variant, base in bases.items() if base in record["variants"]}
    record["torch_device"] = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    told = cast(dict[str, float], record["gflops"])
    told |= {variant: told[name] for variant, name in _owners(names, others).items() if name in told}
    page = latency_markdown(record)
    if alone != "none":
        page += beside_torch(record, read_json(beside) if beside else {})
    write_json(out / "latency.json", record)
    write_text(out / "latency.md", page)
    print(page)


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
