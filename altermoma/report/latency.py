"""Latency of bundles beside each other, beside torch, and beside the paper's figures as ratios. Pure data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from altermoma.deploy.benchmark import FRAME, PROCESSOR, realised_share
from altermoma.report.gpu import table
from altermoma.report.paper import paper_table

Record = Mapping[str, Any]

NOTE = (
    "R = share of time saved / share of FLOPs saved, of the whole frame, within one runtime. The paper's rows are "
    "another model's in PyTorch on an RTX 3090 (124.04 ms dense, 106.39 ms at 31 % and 87.46 ms at 57 % fewer FLOPs): "
    "only ratios compare."
)


def latency_markdown(record: Record) -> str:
    """The page of one benchmark.

    Args:
        record: as `BenchmarkResult.to_dict` gives it, with `markdown`, `points`, `gpu` (what was sampled meanwhile),
            `gflops` by variant where known, `dense`, the variant that the others are held against, and `bases`, the
            dense variant of the same runtime for those that have another one.
    """
    parts = [_conditions(record), record["markdown"].rstrip(), _gpu(record)]
    if len(record["variants"]) > 1:  # a single one is nobody's ratio
        parts += [NOTE, _ratios(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _conditions(record: Record) -> str:
    told = record["conditions"]
    clock = f" at {told['clock_mhz']} MHz" if "clock_mhz" in told else ""
    versions = ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items())
    return (
        f"{record['rounds']} rounds after {record['warmup']} of warm-up, all variants in turn in one process, "
        f"{record['points']} points; {told['processor']}{clock}, kept on {told['threads']} of {told['cpus']} CPUs, "
        f"load {told.get('load_1min', 'unknown')}; {versions}. `processor` is processor time of the process, the rest "
        "wall clock."
    )


def _gpu(record: Record) -> str:
    if not record.get("gpu"):
        return ""
    spread = [[n, *(f"{v[k]:.0f}" for k in ("min", "median", "max"))] for n, v in record["gpu"].items()]
    return table([["GPU meanwhile", "min", "median", "max"], *spread])


def _ratios(record: Record) -> str:
    head = ["", "frame p50 ms", "/ dense", "processor / dense", "FLOPs / dense", "R", "R, processor", "p99 / p50"]
    lines = [head]
    for row in paper_table().rows:
        if row.latency_share is not None:
            shares = [_number(row.latency_share), "", _number(row.flops_share), _number(row.realised_share, ".2f")]
            lines.append([f"paper, {row.name}", "", *shares, "", ""])
    return table([*lines, *(_ratio(name, record) for name in record["variants"])])


def _ratio(name: str, record: Record) -> list[str]:
    """Times against the first bundle; R against the dense model in the same runtime."""
    times, gflops = record["variants"][name]["latency_ms"], record["gflops"]
    first = record["variants"][record["dense"]]["latency_ms"]
    base = record.get("bases", {}).get(name, record["dense"])
    own = record["variants"][base]["latency_ms"]
    known = name in gflops and gflops.get(base, 0.0) > 0
    fewer = 1 - gflops[name] / gflops[base] if known else 0.0
    return [
        name,
        f"{times[FRAME]['p50']:.1f}",
        *(_number(times[part]["p50"] / first[part]["p50"]) for part in (FRAME, PROCESSOR)),
        _number(1 - fewer if known else None),
        *(_realised(own[part]["p50"], times[part]["p50"], fewer) for part in (FRAME, PROCESSOR)),
        f"{times[FRAME]['p99'] / times[FRAME]['p50']:.2f}",
    ]


def _number(value: float | None, how: str = ".3f") -> str:
    return "" if value is None or not math.isfinite(value) else format(value, how)


def _realised(dense: float, pruned: float, fewer: float) -> str:
    return f"{realised_share(dense, pruned, fewer):.2f}" if fewer > 0 and dense > 0 else ""
