"""The result of scripts/gpu_check.py as Markdown: what was built, whether it is right, how fast it is. Pure data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from altermoma.deploy.benchmark import FRAME, realised_share
from altermoma.deploy.manifest import STAGES
from altermoma.errors import RecipeError
from altermoma.report.paper import paper_table

Record = Mapping[str, Any]

FRAME_STEPS = {"frame": "stage by stage", "frame, host": "graphs, host", "frame, device": "graphs, device"}
"""Steps of `deploy.gpu_check` that run whole frames, and what the page calls them."""


def gpu_markdown(result: Record) -> str:
    """The whole page.

    Args:
        result: `machine`, `variants` (name -> check record) and `benchmarks` (model -> record), as `result.json` holds.
    """
    faults = list(failures(result))
    parts = [
        "# Engines on this machine",
        _machine(result["machine"]),
        f"**{len(faults)} failures**" if faults else "**Everything passed.**",
        *([bullets(faults)] if faults else []),
        *_endings(result),
        "## Engines",
        "GPU MiB: most that was in use on the whole GPU during the build. Milliseconds are of the engine alone, "
        "inputs and outputs on the device. Difference: largest over all outputs, "
        "over the largest magnitude of the output, fed with the bundle's own inputs.",
        _engines(result["variants"]),
        "## Whole frame against the bundle's reference",
        "Run: every stage by itself with its answers copied to the host and back; or as a vehicle does it, on two "
        "streams with CUDA graphs, frames prepared on the host or by the device kernels.",
        _frames(result["variants"]),
    ]
    kernels = _kernels(result["variants"])
    if kernels:
        parts += ["## Device kernels against numpy", kernels]
    for model, record in result["benchmarks"].items():
        parts += [f"## Latency of {model}", *_latency(model, record, result["variants"])]
    return "\n\n".join(parts) + "\n"


def failures(result: Record) -> Iterator[str]:
    """Everything that went wrong or was not reached, one line each."""
    for name, check in result["variants"].items():
        if "error" in check:
            yield f"{name}: {_line(check['error'])}"
        elif check.get("status") not in {"passed", "failed"}:
            yield f"{name}: not finished in the time given; run the same command again"
        for step, found in check.get("steps", {}).items():
            if found["status"] in {"failed", "skipped"}:
                yield f"{name}, {step}: {found['status']}: {_line(found.get('error', ''))}"
    for model, record in result["benchmarks"].items():
        if "error" in record:
            yield f"benchmark of {model}: {_line(record['error'])}"


def _endings(result: Record) -> list[str]:
    """Processes that crashed when everything was on file: nothing is lost, but it is to be known."""
    every = {**result["variants"], **{f"benchmark of {m}": record for m, record in result["benchmarks"].items()}}
    told = [
        f"{name}: everything was done, then {record['ended']}" for name, record in every.items() if "ended" in record
    ]
    return [bullets(told)] if told else []


def table(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    head, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:400]


def _machine(machine: Record) -> str:
    told = {**machine, **machine.get("gpu", {})}
    return bullets([f"{name}: {value}" for name, value in told.items() if not isinstance(value, dict)])


def _engines(variants: Record) -> str:
    head = [
        "variant",
        "stage",
        "build s",
        "GPU MiB",
        "plan MB",
        "scratch MB",
        "layers",
        "sparse picked/eligible",
        "ms p50",
        "p99",
    ]
    lines = [[*head, "difference", "allowed", ""]]
    for name, check in variants.items():
        steps = check.get("steps", {})
        for stage in (s for s in STAGES if f"build {s}" in steps):
            lines.append([name, stage, *_engine(steps[f"build {stage}"], steps.get(f"run {stage}", {}))])
    return table(lines)


def _engine(build: Record, run: Record) -> list[str]:
    layers = ", ".join(f"{count} {name}" for name, count in sorted(build.get("layers", {}).items()))
    sparse = f"{build['sparse_picked']}/{build['sparse_eligible']}" if "sparse_picked" in build else ""
    times, parity = run.get("execution_ms", {}), run.get("parity", [])
    worst = max(parity, key=lambda check: float(check["difference"]), default=None)
    states = {build["status"], run.get("status", "not reached")}
    return [
        "kept" if build.get("built_before") else _number(build.get("seconds"), ".1f"),
        _number(build.get("gpu_memory_mib"), ".0f"),
        _number(build.get("plan_bytes"), ".1f", 1e-6),
        _number(run.get("memory_bytes", {}).get("scratch"), ".1f", 1e-6),
        layers,
        sparse,
        _number(times.get("p50"), ".3f"),
        _number(times.get("p99"), ".3f"),
        _number(worst and worst["difference"], ".1e"),
        _number(worst and worst["allowed"], ".0e"),
        "passed" if states == {"passed"} else "**failed**" if "failed" in states else "not reached",
    ]


def _number(value: Any, how: str, factor: float = 1.0) -> str:
    return "" if value is None else format(value * factor, how)


def _frames(variants: Record) -> str:
    head = ["variant", "run", "boxes", "found again", "largest distance m", "largest score difference"]
    head += ["off stage by stage", "graphs", "MB"]
    lines = [[*head, ""]]
    for name, check in variants.items():
        steps = check.get("steps", {})
        for step, way in FRAME_STEPS.items():
            if step in steps or step == "frame":
                lines.append([name, way, *_frame(steps.get(step, {}))])
    return table(lines)


def _frame(found: Record) -> list[str]:
    cells = [str(found.get("boxes", "")), str(found.get("matched", ""))]
    cells += [_number(found.get("centre_m"), ".4f"), _number(found.get("score"), ".4f")]
    cells.append(_number(found.get("from_stages"), ".1e"))
    captures = found.get("captures", {})
    graphs = f"{sum(count > 0 for count in captures.values())} of {len(captures)} lines" if captures else ""
    status = str(found.get("status", "not reached"))
    # Untrained and freshly pruned models may find nothing: then only the stages have been held to the reference.
    status = status if found.get("boxes") != 0 else f"{status}, no box to find"
    return [*cells, graphs, _number(found.get("memory_bytes"), ".1f", 1e-6), status]


def _kernels(variants: Record) -> str:
    """Device kernels against numpy; empty where they did not run."""
    lines = [["variant", "part", "ms p50", "p99", "entries that differ", ""]]
    for name, check in variants.items():
        found = check.get("steps", {}).get("kernels", {})
        differing = ", ".join(f"{tensor} {count}" for tensor, count in found.get("differing", {}).items() if count)
        for part, times in found.get("ms", {}).items():
            cells = [f"{times['p50']:.3f}", f"{times['p99']:.3f}", differing or "none", found["status"]]
            lines.append([name, part, *cells])
        for part, time in found.get("host_ms", {}).items():
            lines.append([name, f"{part}, numpy on the host, once", f"{time:.1f}", "", "", ""])
    return table(lines) if len(lines) > 1 else ""


def _latency(model: str, record: Record, variants: Record) -> list[str]:
    if "error" in record:
        return [f"Not measured: {_line(record['error'])}"]
    told = record["conditions"]
    parts = [
        f"{record['rounds']} rounds after {record['warmup']}, all variants in turn in one process, {record['points']} "
        f"points; {told['processor']}, kept on {told['threads']} of {told['cpus']} CPUs, load {told.get('load_1min')}.",
        record["markdown"].rstrip(),
    ]
    if record["gpu"]:
        spread = [[n, *(f"{v[k]:.0f}" for k in ("min", "median", "max"))] for n, v in record["gpu"].items()]
        parts += [table([["GPU meanwhile", "min", "median", "max"], *spread])]
    ways = record.get("ways", {})
    if ways:
        parts += ["Frames are run " + ", ".join(f"{n}: {_way(way)}" for n, way in ways.items()) + "."]
    wrong = [n for n in record["variants"] if variants.get(n, {}).get("status") != "passed"]
    if wrong:
        parts += [f"Not everything is right in {', '.join(wrong)}: see above before quoting a time."]
    return [*parts, *_ratios(record, variants)]


def _way(way: str) -> str:
    return way if way not in {"host", "device"} else f"with graphs, prepared on the {way}"


def _ratios(record: Record, variants: Record) -> list[str]:
    """Pruned against dense of the same precision, beside the paper's ratios."""
    lines = [["", "frame ms / dense", "FLOPs / dense", "R frame", "R engines alone", "p99 / p50"]]
    for row in (row for row in paper_table().rows if row.latency_share is not None):
        cells = [_number(value, ".3f") for value in (row.latency_share, row.flops_share)]
        lines.append([f"paper, {row.name}", *cells, _number(row.realised_share, ".2f"), "", ""])
    measured = [found for name in record["variants"] if (found := _ratio(name, record, variants))]
    if not measured:
        return []
    note = "R = share of time saved / share of FLOPs saved. The paper's are another model's in PyTorch on an RTX 3090 "
    note += "(124.04, 106.39 and 87.46 ms): only ratios compare."
    return [note, table([*lines, *measured])]


def _ratio(name: str, record: Record, variants: Record) -> list[str]:
    check = variants.get(name, {})
    dense = next((n for n in record["variants"] if _is_dense(variants.get(n, {}), check)), None)
    if dense is None:
        return []
    times, base = (record["variants"][n]["latency_ms"][FRAME] for n in (name, dense))
    flops, whole = (variants[n]["metrics"]["flops"]["total"] for n in (name, dense))
    fewer = 1 - flops / whole
    engines, before = _alone(check), _alone(variants[dense])
    return [
        name,
        f"{times['p50'] / base['p50']:.3f}",
        f"{flops / whole:.3f}",
        _share(base["p50"], times["p50"], fewer),
        _share(before, engines, fewer) if before and engines else "",
        f"{times['p99'] / times['p50']:.2f}",
    ]


def _is_dense(found: Record, of: Record) -> bool:
    """The yardstick: same precision, nothing removed. Bundles of other makers may not tell."""
    flops, removed = of.get("metrics", {}).get("flops"), found.get("metrics", {}).get("amount")
    return bool(flops) and removed == 0 and found.get("precision") == of.get("precision")


def _alone(check: Record) -> float:
    """Milliseconds of all engines one after the other, without copies and host; 0 where one is missing."""
    found = [check.get("steps", {}).get(f"run {stage}", {}).get("execution_ms", {}).get("p50") for stage in STAGES]
    return 0.0 if None in found else float(sum(found))


def _share(dense: float, pruned: float, fewer: float) -> str:
    try:
        return f"{realised_share(dense, pruned, fewer):.2f}"
    except RecipeError:
        return "-"
