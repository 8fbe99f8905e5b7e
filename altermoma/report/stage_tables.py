"""What the stages of a model take at several widths, as a page. Pure data."""

from __future__ import annotations

from altermoma.deploy.stage_tables import MeasuredTables
from altermoma.report.gpu import table

BUSY = 1.3
"""Median over least above which something else wanted the machine."""


def stage_tables_markdown(measured: MeasuredTables) -> str:
    """Stages as rows, widths as columns, and where it was measured."""
    every = measured.stages.values()
    names = measured.widths or tuple(str(index + 1) for index in range(max(len(times.ms) for times in every)))
    rows = [["p50 ms (of dense; its FLOPs)", *(f"{name} %" for name in names)]]
    for stage, times in measured.stages.items():
        columns = zip(times.ms, times.shares, strict=True)
        rows.append([stage, *(f"{ms:.3f} ({ms / times.ms[0]:.2f}; {share:.2f})" for ms, share in columns)])
    totals = [sum(column) for column in zip(*(times.ms for times in every), strict=True)]
    rows.append(["all", *(f"{total:.3f} ({total / totals[0]:.2f})" for total in totals)])
    told = (
        f"{measured.model}, {measured.served}; measured on {measured.device}, {measured.runtime}. Pruning counts these "
        "medians."
    )
    return "\n\n".join(part for part in (told, table(rows), _launched(measured), _noise(measured)) if part)


def _launched(measured: MeasuredTables) -> str:
    found = {
        f"{stage} at {name} %": why
        for stage, widths in measured.about.get("launched", {}).items()
        for name, why in widths.items()
    }
    if not found:
        return ""
    return (
        f"Timed with its launches from the host, not as a captured graph: {', '.join(found)} "
        f"({'; '.join(sorted({*found.values()}))}). Small stages seem slower by that than they are."
    )


def _noise(measured: MeasuredTables) -> str:
    off = {
        stage: max(ms / least for ms, least in zip(times.ms, times.least, strict=True))
        for stage, times in measured.stages.items()
        if times.least
    }
    worst = max(off, key=lambda stage: off[stage], default="")
    if not worst or off[worst] <= BUSY:
        return ""
    return (
        f"The median of {worst} is {off[worst]:.1f} times its shortest run: something else wanted the machine, or its "
        "clocks changed. Measure again with the clocks fixed and nothing beside it."
    )
