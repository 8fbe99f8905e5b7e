"""What 2:4 sparsity could do: share of the FLOPs that is eligible, and of the magnitude that stays, as Markdown.

python scripts/two_four_table.py eligible runs/half/bundle runs/paper_scale/*/dense-fp32
python scripts/two_four_table.py kept altermoma/checkpoints/weights/bevfusion-tiny.safetensors
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import onnx
import typer

from altermoma.checkpoints.io import model_from_checkpoint
from altermoma.cli.console import run_app
from altermoma.deploy.bundle import Bundle
from altermoma.export.contract import load_contract
from altermoma.export.sparsity import sparsity_report
from altermoma.pruning.two_four_prune import prune_two_four
from altermoma.pruning.two_four_rules import WIDTH_RULES, WidthRule

app = typer.Typer(add_completion=False, no_args_is_help=True)
STAGES = ("camera", "view", "lidar", "fusion", "head")


@app.command()
def eligible(bundles: Annotated[list[Path], typer.Argument(help="Bundle folders with fp32 graphs.")]) -> None:
    """Share of the FLOPs in products that 2:4 kernels could take, by rule; for `aligned` also stage by stage."""
    print("| bundle | GFLOPs | " + " | ".join([*WIDTH_RULES, *(f"aligned, {stage}" for stage in STAGES)]) + " |")
    print("|---" * (2 + len(WIDTH_RULES) + len(STAGES)) + "|")
    for folder in bundles:
        bundle = Bundle.open(folder)
        reference, contract = bundle.reference(), load_contract(str(bundle.manifest.recipe["model"]))
        records = bundle.stages("fp32").items()
        graphs = {name: onnx.load_model_from_string(bundle.graph(record)) for name, record in records}
        arrays = {**reference.host, **reference.tensors}
        reports = {rule: sparsity_report(graphs, contract, arrays, rule=rule, asked="dense") for rule in WIDTH_RULES}
        layers = reports["aligned"].layers
        whole = sum(layer.flops for layer in layers)
        cells = [f"{folder.parent.name}/{folder.name}", f"{whole / 1e9:.2f}"]
        cells += [f"{report.share():.1%}" for report in reports.values()]
        for stage in STAGES:
            inside = [layer for layer in layers if layer.stage == stage]
            taken = sum(layer.flops for layer in inside if layer.eligible)
            cells.append(f"{taken / max(sum(layer.flops for layer in inside), 1.0):.1%}")
        print("| " + " | ".join(cells) + " |", flush=True)


@app.command()
def kept(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints, dense or pruned by channels.")],
    rule: Annotated[WidthRule, typer.Option(help="How wide a layer must be.")] = "aligned",
) -> None:
    """Share of the magnitude that 2:4 keeps, with channels as they are and reordered."""
    print("| checkpoint | 2:4 weights | kept as it is | kept reordered | s of one core |")
    print("|---|---|---|---|---|")
    for file in checkpoints:
        model = model_from_checkpoint(file)
        started = time.process_time()
        found = prune_two_four(model, rule)
        spent = time.process_time() - started
        shares = f"{found.kept_before:.4f} | {found.kept_after:.4f}"
        print(f"| {file.parent.name}/{file.stem} | {len(found.masks)} | {shares} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    run_app(app)
