"""Dense against AlterMOMA at several FLOP budgets, by whole runs of `altermoma-export`, as one Markdown table.

    python scripts/structured_table.py --amounts 0.3 --amounts 0.5 --out docs/benchmarks/structured.md

Every run keeps its folder below --runs, so a table that was cut off goes on where it stopped; a run of other weights,
data or code is done again. Latency ratios come from one process each, dense and pruned interleaved.
"""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from altermoma.progress import say, track
from altermoma.recipe import Recipe, load
from altermoma.report.summary import Summary
from altermoma.storage import write_text

DENSE, PRUNED = "dense-onnxruntime-fp32", "onnxruntime-fp32"


def run(recipe: Recipe, folder: Path) -> Summary:
    """The summary of a run; the command itself keeps the steps that are done and fit, and says what went wrong."""
    written = folder.with_suffix(".toml")
    write_text(written, recipe.to_toml())
    start = "from altermoma.cli.oneshot import main; main()"
    command = [sys.executable, "-c", start, "--recipe", str(written), "--out", str(folder)]
    say(" ".join(command))
    code = subprocess.run(command, check=False).returncode
    if code:
        raise typer.Exit(code)
    return Summary.read(folder / "summary.json")


def row(label: str, summary: Summary, variant: str, *, dense: bool) -> str:
    """One line of the table."""
    found, yardstick = summary.variants[variant], summary.variants[DENSE]
    frame, graphs = summary.realised_share.frame, summary.realised_share.graphs
    times, base = found.latency_ms, yardstick.latency_ms
    ratio = "-" if times is None or base is None else f"{times['frame'].p50 / base['frame'].p50:.3f}"
    reduction = 0.0 if dense else summary.flops_reduction
    shares = ("-", "-") if dense or times is None else (f"{graphs:.2f}", f"{frame:.2f}")
    cells = (
        label,
        f"{100 * found.mAP:.1f}",
        f"{100 * found.NDS:.1f}",
        f"{found.gflops:.2f}",
        f"{100 * reduction:.1f} %",
        f"{found.params / 1e6:.2f}",
        ratio,
        *shares,
    )
    return "| " + " | ".join(cells) + " |"


def table(runs: dict[str, Summary]) -> str:
    """The runs as Markdown."""
    first = next(iter(runs.values()))
    lines = [
        "| | mAP | NDS | GFLOPs | fewer | M params | frame ms / dense | R graphs | R frame |",
        "|---|---|---|---|---|---|---|---|---|",
        row("dense, torch", first, "dense", dense=True),
        row("dense, ONNX Runtime fp32", first, DENSE, dense=True),
    ]
    for label, summary in runs.items():
        lines.append(row(f"{label}, torch", summary, "pruned", dense=False))
        for variant in summary.variants:
            if variant.startswith("onnxruntime-"):
                runtime = variant.replace("onnxruntime-", "ONNX Runtime ")
                lines.append(row(f"{label}, {runtime}", summary, variant, dense=False))
    return "\n".join(lines)


def main(
    *,
    amounts: Annotated[list[float], typer.Option(help="Share of the FLOPs to remove; repeatable.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/structured"),
    recipe: Annotated[Path | None, typer.Option(help="Recipe to start from; else the defaults.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs per amount, with seeds 0, 1, ...")] = 1,
) -> None:
    """Runs what is missing and writes the table."""
    base = load(recipe) if recipe else Recipe()
    found: dict[str, Summary] = {}
    for amount, seed in track([(a, s) for a in amounts for s in range(seeds)], "Runs"):
        prune = dataclasses.replace(base.prune, budget="flops", amount=amount, seed=seed)
        asked = dataclasses.replace(base, prune=prune, finetune=dataclasses.replace(base.finetune, seed=seed))
        label = f"AlterMOMA {100 * amount:.0f} %" + (f", seed {seed}" if seeds > 1 else "")
        found[label] = run(asked, runs / f"flops{100 * amount:.0f}-seed{seed}")
    first = next(iter(found.values()))
    shown = ", ".join(f"--amounts {amount}" for amount in amounts).replace(",", "")
    text = "\n".join(
        [
            "# Structured AlterMOMA",
            "",
            f"{first.data['title']}; {first.device}; {platform.system()}, Python {first.versions['python']}, "
            f"torch {first.versions['torch']}, ONNX Runtime {first.versions['onnxruntime']}. "
            "Times are p50 over interleaved whole frames; R = share of time saved / share of FLOPs saved.",
            "",
            table(found),
            "",
            "fp16 is emulated on a CPU: it is run for accuracy, and no time is quoted.",
            "",
            *(f"- {label}: {note}" for label, summary in found.items() for note in summary.notes),
            "",
            f"Made by `python scripts/structured_table.py {shown} --seeds {seeds} --out {out}`.",
            "",
        ]
    )
    write_text(out, text)
    say(table(found))


if __name__ == "__main__":
    typer.run(main)
