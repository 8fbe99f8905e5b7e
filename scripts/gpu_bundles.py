"""Makes the bundles that `scripts/gpu_check.py` takes: dense, 56.7 % fewer FLOPs, these also 2:4; fp32, fp16.

    python scripts/gpu_bundles.py --out runs/gpu_bundles --data ../shared/real

Needs torch. bevfusion-tiny has the weights of the package, bevfusion-mit-r101-second random ones: nothing that is
measured depends on what was learned. The reference is a real frame with the cloud of ten sweeps, or, with
`--data synthetic`, a frame of the synthetic world. What is there is kept: scores and pruned weights (--runs, as
paper_scale_table.py), and bundles.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from paper_scale_steps import SYNTHETIC, label, real_frame

from altermoma.checkpoints.io import model_from_checkpoint
from altermoma.cli.console import run_app
from altermoma.deploy.bundle import Bundle, copy_bundle
from altermoma.errors import BundleError, DataError
from altermoma.progress import say
from altermoma.pruning.two_four_prune import prune_two_four
from altermoma.recipe import EngineRecipe, ExportRecipe, Precision, Recipe, Sparsity
from altermoma.storage import read_json
from altermoma.workflow.graphs import export_bundle
from altermoma.workflow.place import Workplace

PRESETS = ("bevfusion-tiny", "bevfusion-mit-r101-second")
VARIANTS: tuple[tuple[float, Sparsity], ...] = ((0.0, "dense"), (0.567, "dense"), (0.567, "2:4"))
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
TOLERANCE = 1e-3
"""Of fp32 stages: the bundle's, which engines are held against. ONNX Runtime is nearer to torch by far."""

STEPS = Path(__file__).with_name("paper_scale_steps.py")


def make_weights(preset: str, amount: float, data: Path, runs: Path) -> dict[str, Any]:
    """Scores and weights of a budget, each step in a process of its own; gives the record of the pruning."""
    folder = runs / preset
    steps = {
        folder / "score.json": ["score"],
        folder / f"{label(amount)}-prune.json": ["prune", "--amount", str(amount)],
    }
    for file, arguments in steps.items():
        if not file.is_file():
            command = [sys.executable, str(STEPS), *arguments, "--preset", preset]
            say(" ".join(command))
            subprocess.run([*command, "--data", str(data), "--runs", str(runs)], check=True)
    record: dict[str, Any] = read_json(folder / f"{label(amount)}-prune.json")
    return record


def make_bundle(preset: str, variant: tuple[float, Sparsity], data: Path, runs: Path, out: Path) -> None:
    """One bundle with both precisions; its metrics tell how much was removed and the FLOPs that remain.

    2:4 weights are not fine-tuned: nothing that is measured depends on what they are worth.
    """
    amount, sparsity = variant
    name = f"{preset}-{label(amount)}" + ("-24" if sparsity == "2:4" else "")
    if _whole(out / name):
        say(f"{name}: is there")
        return
    pruned = make_weights(preset, amount, data, runs)
    checkpoint = runs / preset / f"{label(amount)}.safetensors"
    recipe = Recipe(
        name=name,
        model=preset,
        checkpoint=str(checkpoint),
        export=ExportRecipe(fp32_tolerance=TOLERANCE),
        engine=EngineRecipe(sparsity=sparsity),
    )
    flops = {key: pruned["flops_after"][key] for key in ("total", "total_real", "by_stage")}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=out) as work:
        draft = Path(work) / name
        model = model_from_checkpoint(checkpoint)
        if sparsity == "2:4":
            model = prune_two_four(model, recipe.prune.two_four_rule).model
        export_bundle(Workplace(recipe), model, PRECISIONS, draft, pruned["widths_after"], frame=real_frame(data))
        copy_bundle(draft, out / name, metrics={"amount": amount, "flops": flops})
    say(f"{name}: {sum(p.stat().st_size for p in (out / name).rglob('*') if p.is_file()) / 2**20:.1f} MiB")


def _whole(folder: Path) -> bool:
    try:
        Bundle.open(folder)
    except BundleError:
        return False
    return True


def main(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the bundles.")],
    data: Annotated[Path, typer.Option(help="Folder with a real frame, or `synthetic`.")] = Path("../shared/real"),
    runs: Annotated[Path, typer.Option(help="Folder of scores and weights.")] = Path("runs/paper_scale"),
    presets: Annotated[list[str] | None, typer.Option(help="Models; repeatable. Without it: both.")] = None,
) -> None:
    """Makes the bundles that are missing."""
    if data != SYNTHETIC and not data.is_dir():
        raise DataError(f"no real frame at {data}", expected="a folder", remedy="--data synthetic makes one up")
    for preset in presets or PRESETS:
        for variant in VARIANTS:
            make_bundle(preset, variant, data, runs, out)


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
