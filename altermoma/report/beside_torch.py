"""Torch models beside the engines of the same machine, which were timed in another process. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altermoma.deploy.benchmark import FRAME
from altermoma.deploy.manifest import STAGES
from altermoma.report.gpu import table

Record = Mapping[str, Any]

NETWORK = "network"
"""What the part is called that begins with the graph inputs on the device and ends with the outputs there."""

NOTE = (
    "`network` is the model alone, from inputs on the device to outputs there: of torch with what the host takes to "
    "launch it, of engines the sum of their stages, one after the other. Frames compare like with like where both are "
    "prepared on the host; an engine's frame that is prepared on the device is what the vehicle gains by the kernels "
    "as well. Torch and the engines were timed one after the other, not in turn."
)


def beside_torch(torch: Record, result: Record) -> str:
    """How many times as fast engines are as torch.

    Args:
        torch: what `scripts/bench_latency.py --torch-device` measured: `variants`, `dense` (the one that all are held
            against), `model`, `precision`, `torch_device`, `failed`.
        result: what `scripts/gpu_check.py` measured: `benchmarks` by model and `variants`; may be empty.

    Returns:
        Markdown: a row per variant with the p50 of frame and network, and both against torch's first.
    """
    base = torch["variants"][torch["dense"]]["latency_ms"]
    first = (base[FRAME]["p50"], base[NETWORK]["p50"])
    lines = [["", "prepared on", "frame ms p50", "times as fast", "network ms p50", "times as fast"]]
    for name, variant in torch["variants"].items():
        times = variant["latency_ms"]
        lines.append([f"{name}, {torch['precision']}", "host", *_pairs((times[FRAME], times[NETWORK]), first)])
    bench = result.get("benchmarks", {}).get(torch["model"], {})
    for name, variant in bench.get("variants", {}).items():
        way = bench.get("ways", {}).get(name, "host")
        times = (variant["latency_ms"][FRAME], _engines(result.get("variants", {}).get(name, {})))
        lines.append([f"engines {name}", way if way == "device" else "host", *_pairs(times, first)])
    parts = ["", f"Held against {torch['dense']} on {torch['torch_device']}.", table(lines), NOTE]
    if result and not bench.get("variants"):
        parts.append(f"There are no engines of {torch['model']} to set beside it: {_why(result, torch['model'])}.")
    failed = [f"{name} did not run: {why}." for name, why in torch.get("failed", {}).items()]
    return "\n\n".join([*parts, *failed]).lstrip("\n") + "\n"


def _pairs(times: tuple[Record | None, ...], first: tuple[float, ...]) -> list[str]:
    """Milliseconds and the ratio, twice."""
    cells = []
    for time, base in zip(times, first, strict=True):
        cells += ["", ""] if time is None else [f"{time['p50']:.2f}", f"{base / time['p50']:.2f}"]
    return cells


def _engines(check: Record) -> Record | None:
    """All stages one after the other; None where one was not timed."""
    found = [check.get("steps", {}).get(f"run {stage}", {}).get("execution_ms", {}).get("p50") for stage in STAGES]
    return None if None in found else {"p50": float(sum(found))}


def _why(result: Record, model: str) -> str:
    held = result.get("benchmarks", {})
    if model in held:
        return str(held[model].get("error", "nothing was timed"))
    return f"there are some of {', '.join(held)}" if held else "none was timed"
