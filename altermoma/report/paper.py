"""The paper's tables 5 and 9 as ratios to its own dense model.

Another model on another device: never to be mixed with ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from altermoma.report.summary import realised


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of the paper, accuracies in percent, the rest relative to its dense row."""

    name: str
    mAP: float  # noqa: N815 (the metric's name)
    NDS: float
    mAP_change: float  # noqa: N815
    NDS_change: float
    flops_share: float
    latency_share: float | None
    realised_share: float | None


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    source: str
    model: str
    device: str
    data: str
    rows: tuple[PaperRow, ...]


def paper_table() -> PaperTable:
    """Reads the packaged figures."""
    text = resources.files("altermoma.report").joinpath("paper_tables.json").read_text(encoding="utf-8")
    record = json.loads(text)
    dense: list[float] = record["dense"]
    rows = [_row("dense", dense, dense)]
    rows += [_row(name, values, dense) for name, values in record["rows"].items()]
    return PaperTable(
        source=record["source"], model=record["model"], device=record["device"], data=record["data"], rows=tuple(rows)
    )


def _row(name: str, values: list[float], dense: list[float]) -> PaperRow:
    m_ap, nds, gflops, milliseconds = values
    flops_share = gflops / dense[2]
    timed = milliseconds is not None
    return PaperRow(
        name=name,
        mAP=m_ap,
        NDS=nds,
        mAP_change=m_ap - dense[0],
        NDS_change=nds - dense[1],
        flops_share=flops_share,
        latency_share=milliseconds / dense[3] if timed else None,
        realised_share=realised(dense[3], milliseconds, 1 - flops_share) if timed else None,
    )
