"""Presets at the paper's scale, dense and at its two structured budgets: costs, export, parity, latency, as Markdown.

    python scripts/paper_scale_table.py --presets bevfusion-mit-r101-second --data ../shared/real --out docs/paper.md

Every step is a process of its own (scripts/paper_scale_steps.py) and leaves one JSON file below --runs; what is there
is not done again. Latency comes from scripts/bench_paper_scale.py and is shown where it has run.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
import typer
from numpy.typing import NDArray
from paper_scale_steps import Data, label

from altermoma.deploy.benchmark import FRAME, realised_share, summary
from altermoma.progress import say
from altermoma.storage import read_json, write_text

AMOUNTS = (0.0, 0.312, 0.567)
STAGES = ("camera", "view", "lidar", "fusion", "head")
MARKER = "<!-- Below this line: written by scripts/paper_scale_table.py. Above it: by hand. -->"
STEPS = Path(__file__).with_name("paper_scale_steps.py")

Times = dict[str, NDArray[np.float64]]
"""Part -> milliseconds of every round."""


def run_missing(preset: str, data: Path, runs: Path) -> None:
    """Runs the steps whose files are missing, each in a process of its own."""
    folder = runs / preset
    steps: list[tuple[Path, list[str]]] = [(folder / "score.json", ["score"])]
    for amount in AMOUNTS:
        steps.append((folder / f"{label(amount)}-prune.json", ["prune", "--amount", str(amount)]))
        steps.append((folder / f"{label(amount)}-fp32-export.json", ["export", "--amount", str(amount)]))
    steps.append((folder / "masks.json", ["masks"]))
    for file, arguments in steps:
        if not file.is_file():
            command = [sys.executable, str(STEPS), *arguments, "--preset", preset]
            say(" ".join(command))
            subprocess.run([*command, "--data", str(data), "--runs", str(runs)], check=True)


def rows(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    head, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)) + "\n"


def present(folder: Path, suffix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and record of every variant whose file is there."""
    for name in (*map(label, AMOUNTS), *(label(amount, timed=True) for amount in AMOUNTS[1:])):
        file = folder / f"{name}-{suffix}.json"
        if file.is_file():
            yield name, read_json(file)


def costs(folder: Path) -> str:
    lines = [["", "M parameters", *(f"{s}" for s in STAGES), "GFLOPs padded", "fewer", "GFLOPs real", "fewer"]]
    dense: dict[str, Any] = {}
    for name, record in present(folder, "prune"):
        found = record["flops_after"]
        dense = dense or found
        stages = [
            f"{found['by_stage'][s] / 1e9:.1f}"
            + (f" ({found['by_stage_real'][s] / 1e9:.1f} real)" if s == "lidar" else "")
            for s in STAGES
        ]
        totals = []
        for key in ("total", "total_real"):
            totals += [f"{found[key] / 1e9:.2f}", f"{100 * (1 - found[key] / dense[key]):.2f} %"]
        lines.append([name, f"{record['params_after'] / 1e6:.2f}", *stages, *totals])
    return rows(lines)


def exports(folder: Path) -> str:
    lines = [["", "s", "s of processor", "peak GiB", "ONNX MiB", "parity: worst stage", "whole frame", "lint warnings"]]
    for precision in ("fp32", "fp16"):
        for name, record in present(folder, f"{precision}-export"):
            parity = record["parity"]
            worst = max(parity["stages"], key=lambda stage: parity["stages"][stage]["scaled_max"])
            lines.append(
                [
                    f"{name} {precision}",
                    f"{record['seconds']:.0f}",
                    f"{record['processor_seconds']:.0f}",
                    f"{record['peak_gib']:.2f}",
                    f"{sum(record['onnx_mib'].values()):.1f}",
                    f"{parity['stages'][worst]['scaled_max']:.1e} ({worst})",
                    f"{parity['frame']['scaled_max']:.1e}",
                    str(len(parity["findings"])),
                ]
            )
    return rows(lines)


def equivalence(folder: Path) -> str:
    found = [(n, max(r["mask_equivalence"].values())) for n, r in present(folder, "prune") if "mask_equivalence" in r]
    return "; ".join(f"{name} {error:.1e}" for name, error in found)


def times(record: dict[str, Any], clock: str) -> dict[str, Times]:
    """By variant."""
    first = record["rounds"][0]["variants"]
    return {
        name: {part: np.array([r["variants"][name][clock][part] for r in record["rounds"]]) for part in parts[clock]}
        for name, parts in first.items()
    }


def latency(folder: Path) -> str:
    """Medians by stage with R, by the processor's clock, and the frame's percentiles by the wall's."""
    record = read_json(folder / "bench.json")
    flops = {name: found["flops_after"] for name, found in present(folder, "prune")}
    work, wall = times(record, "processor"), times(record, "wall")
    parts = ["host", *STAGES, "decode", FRAME]
    lines = [["processor ms, p50", *parts, "wall p50 / p90 / p99"]]
    for name, found in work.items():
        spread = summary(wall[name][FRAME])
        cells = [f"{np.median(found[part]):.0f}" for part in parts]
        lines.append([name, *cells, " / ".join(f"{spread[key]:.0f}" for key in ("p50", "p90", "p99"))])
    dense = label(0.0)
    for name in (name for name in work if name != dense):
        cells = [share(work[name], work[dense], flops[name], flops[dense], part) for part in parts]
        lines.append([f"R, {name}", *cells, share(wall[name], wall[dense], flops[name], flops[dense], FRAME)])
    loads = [r["conditions"]["load_1min"] for r in record["rounds"]]
    note = f"{len(record['rounds'])} rounds, {record['rounds'][0]['conditions']['processor']}, one thread; "
    return rows(lines) + f"\n{note}load of the machine {min(loads)} to {max(loads)}.\n"


def share(found: Times, dense: Times, after: dict[str, Any], before: dict[str, Any], part: str) -> str:
    """R of a stage or of the frame; nothing where no FLOPs went."""
    if part == FRAME:
        fewer = 1 - after["total"] / before["total"]
    elif part in STAGES:
        fewer = 1 - after["by_stage"][part] / before["by_stage"][part]
    else:
        return ""
    return f"{realised_share(float(np.median(dense[part])), float(np.median(found[part])), fewer):.2f}" if fewer else ""


def widths(folder: Path) -> str:
    """Dense and pruned width of every group of both backbones, equal neighbours of one name pattern joined."""
    found = dict(present(folder, "prune"))
    groups = {n: p for n, p in found[label(0.0)]["partitions"].items() if p in ("camera", "lidar")}
    lines = [["group", *found]]
    for name in groups:
        cells = [str(record["widths_after"][name]) for record in found.values()]
        lines.append([f"`{name}`", *cells])
    return rows(lines)


def masks(folder: Path) -> str:
    record = read_json(folder / "masks.json")
    lines = [["sparsity", "camera", "lidar", "fusion"]]
    for found in record["sparsities"].values():
        cells = [f"{100 * found['by_partition'][p]:.1f} %" for p in ("camera", "lidar", "fusion")]
        lines.append([f"{100 * found['total']:.1f} %", *cells])
    made_of = f"{record['recipe']['score_batches']} frame(s), {record['processor_seconds']:.0f} s of processor"
    return (
        f"Unstructured masks, share of weights that are gone; scores of {made_of}, peak "
        f"{record['peak_gib']:.2f} GiB:\n\n{rows(lines)}"
    )


def overview(presets: list[str], runs: Path) -> str:
    """One line for each preset: the dense model, and R of the frame at both budgets by the processor's time."""
    head = ["", "M parameters", "GFLOPs padded", "real", "export s", "GiB", "ONNX MiB", "parity", "frame ms"]
    lines = [[*head, *(f"R, {label(amount)}" for amount in AMOUNTS[1:])]]
    for preset in presets:
        costs_of, made = (dict(present(runs / preset, suffix)) for suffix in ("prune", "fp32-export"))
        dense, export = costs_of[label(0.0)], made[label(0.0)]
        counts = [f"{dense['flops_after'][key] / 1e9:.1f}" for key in ("total", "total_real")]
        line = [preset, f"{dense['params_after'] / 1e6:.2f}", *counts]
        line += [f"{export['processor_seconds']:.0f}", f"{export['peak_gib']:.2f}"]
        line += [f"{sum(export['onnx_mib'].values()):.0f}"]
        line += [f"{max(stage['scaled_max'] for stage in export['parity']['stages'].values()):.1e}"]
        lines.append(line + _ratios(runs / preset, costs_of))
    return rows(lines)


def _ratios(folder: Path, costs_of: dict[str, dict[str, Any]]) -> list[str]:
    if not (folder / "bench.json").is_file():
        return ["-"] * len(AMOUNTS)
    work, dense = times(read_json(folder / "bench.json"), "processor"), label(0.0)
    flops = {name: record["flops_after"] for name, record in costs_of.items()}
    pruned = [name for name in map(label, AMOUNTS[1:]) if name in work]
    ratios = [share(work[name], work[dense], flops[name], flops[dense], FRAME) for name in pruned]
    return [f"{np.median(work[dense][FRAME]):.0f}", *ratios]


def section(preset: str, folder: Path) -> str:
    """Everything that is known of a preset."""
    scored = read_json(folder / "score.json")
    recipe = scored["recipe"]
    text = [
        f"## {preset}",
        "",
        f"Scores of {recipe['score_batches']} frames (reactivation {recipe['reactivation_batches']}, ReRI "
        f"{recipe['reri_batches']}): {scored['seconds']:.0f} s, {scored['processor_seconds']:.0f} s of processor, "
        f"peak {scored['peak_gib']:.2f} GiB, {scored['threads']} threads, load {scored['load_1min']}.",
        "",
        costs(folder),
        f"Shrunk against masked, largest difference over the largest value: {equivalence(folder)}.",
        "",
        exports(folder),
    ]
    if (folder / "bench.json").is_file():
        text.append(latency(folder))
    if (folder / "masks.json").is_file():
        text += [masks(folder)]
    text += ["<details><summary>Widths of both backbones</summary>", "", widths(folder), "</details>", ""]
    return "\n".join(text)


def main(
    *,
    presets: Annotated[list[str], typer.Option(help="Models; repeatable.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Markdown file to write.")],
    runs: Annotated[Path, typer.Option(help="Folder of the steps' results.")] = Path("runs/paper_scale"),
    only_write: Annotated[bool, typer.Option(help="Run nothing: a table of what is there.")] = False,
) -> None:
    """Runs what is missing and writes the table."""
    for preset in presets:
        if not only_write:
            run_missing(preset, data, runs)
    system = f"{platform.system()}, torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    sections = [section(name, runs / name) for name in presets]
    head = out.read_text(encoding="utf-8").partition(MARKER)[0] if out.is_file() else "# At the paper's scale\n\n"
    write_text(out, "\n".join([head + MARKER, "", f"{system}.", "", overview(presets, runs), *sections]))


if __name__ == "__main__":
    typer.run(main)
