"""The outcome as one HTML page that carries everything it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from altermoma.experiments.plot import Axes, dot_plot, line_plot
from altermoma.experiments.statistics import Spread
from altermoma.experiments.table import (
    ABSENT,
    Entry,
    Table,
    describe_missing,
    shown,
    shown_difference,
    shown_seconds,
    signed,
)

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #fff; --mark: #eef4fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #333c48; --paper: #14181e; --mark: #1d2733; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1080px; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 8px; }
p { margin: 6px 0; max-width: 76ch; } .soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 500; font-size: 13px; }
tr.reference { background: var(--mark); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 24px; }
.wide { overflow-x: auto; } figure { margin: 0; max-width: 740px; }
figcaption { color: var(--soft); font-size: 13px; max-width: 62ch; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; }
svg text:not([fill]) { fill: currentColor; } svg .grid { stroke: var(--line); } svg .axis { fill: var(--soft); }
svg .level { stroke: var(--soft); stroke-dasharray: 5 4; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.maps img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
"""
COLUMNS = ("method", "mAP", "NDS", "to dense", "to reference", "paper, to dense", "loss after cutting", "s per cell")


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page of sections that are HTML already."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n'
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def table_page(table: Table, more: Sequence[str] = ()) -> str:
    """Further sections first, then plots, then the figures."""
    intro = (
        f"<p>Dense: mAP {100 * table.dense['mAP']:.1f}, NDS {100 * table.dense['NDS']:.1f}. Differences are to "
        f"{escape(table.reference)}, seed by seed.</p>"
    )
    if table.paper:
        intro += f'<p class="soft">Paper: points below its own dense model, {escape(table.paper.title)}.</p>'
    sections = [intro, *more, f'<div class="figures">{_plots(table)}</div>']
    sections += [f"<h2>{100 * amount:g} % removed</h2>{_amount(table, amount)}" for amount in table.begun]
    if table.missing:
        first = escape(describe_missing(table.missing[0]))
        sections.append(f'<p class="soft">{len(table.missing)} cells are missing, the first: {first}.</p>')
    return page(table.title, sections)


def _plots(table: Table) -> str:
    """Accuracy and loss: over what the variants differ in, else over the amount, else row by row."""
    drawn = [
        ("mAP, %", "Accuracy after fine-tuning.", 100 * table.dense["mAP"], lambda entry: entry.mAP),
        (
            "task loss",
            "Task loss right after cutting, before any fine-tuning.",
            table.dense["loss"],
            lambda entry: Spread(mean=entry.loss_cut, deviation=None, count=entry.mAP.count),
        ),
    ]
    return "".join(figure(_plot(table, y, level, of), caption) for y, caption, level, of in drawn)


def _plot(table: Table, y: str, level: float, of: Callable[[Entry], Spread]) -> str:
    dense = "dense", level
    if table.over:
        amount = table.begun[0] if table.begun else table.amounts[0]
        lines = {
            name: [(x, of(table.entries[row, amount]).mean) for row, x in points if (row, amount) in table.entries]
            for name, points in table.lines.items()
        }
        marks = sorted({x for points in table.lines.values() for _, x in points})
        return line_plot(lines, Axes(x=f"{table.over}, {100 * amount:g} % removed", y=y, marks=marks), dense)
    if len(table.amounts) == 1:
        rows = {
            row: of(table.entries[row, table.amounts[0]])
            for row in table.rows
            if (row, table.amounts[0]) in table.entries
        }
        return dot_plot({row: (found.mean, found.deviation or 0.0) for row, found in rows.items()}, y, dense)
    lines = {
        row: [(100 * a, of(table.entries[row, a]).mean) for a in table.amounts if (row, a) in table.entries]
        for row in table.rows
    }
    return line_plot(lines, Axes(x="removed, %", y=y, marks=[100 * a for a in table.amounts]), dense)


def figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>" if picture else ""


def rows_of(head: Sequence[str], body: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    """A table; `marked` rows stand out."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for number, row in enumerate(body):
        kind = ' class="reference"' if number < len(marked) and marked[number] else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _amount(table: Table, amount: float) -> str:
    body = []
    for label in table.rows:
        entry = table.entries.get((label, amount))
        if entry is None:
            body.append([label, *[ABSENT] * (len(COLUMNS) - 1)])
            continue
        body.append(
            [
                label,
                shown(entry.mAP),
                shown(entry.NDS),
                signed(entry.mAP.mean - 100 * table.dense["mAP"]),
                shown_difference(entry.difference),
                ABSENT if entry.paper is None else signed(entry.paper),
                f"{entry.loss_cut:.2f}",
                shown_seconds(entry.seconds),
            ]
        )
    return rows_of(COLUMNS, body, [label == table.reference for label in table.rows])
