"""An experiment's outcome as rows: mean, spread, difference to the first row seed by seed, the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altermoma.experiments.paper import PaperFigures, paper_figures
from altermoma.experiments.recipe import ExperimentRecipe
from altermoma.experiments.run import Outcome
from altermoma.experiments.statistics import Difference, Spread, paired_difference, spread

ABSENT = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row at one amount; accuracies in percent.

    Attributes:
        difference: of mAP to the reference row, over the seeds that both have; None for the reference itself.
        loss_cut: mean task loss right after cutting.
        seconds, scoring_seconds: mean processor time of the cells of which it is known (`Workbench.run`).
        paper: the paper's mAP less its dense one, in points.
    """

    mAP: Spread  # noqa: N815 (the metric's name)
    NDS: Spread
    difference: Difference | None
    loss_cut: float
    seconds: float | None
    scoring_seconds: float | None
    paper: float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Attributes:
    entries: by row and amount; cells that are missing are left out.
    reference: the row that others are compared with.
    over: what `lines` run over; empty without lines.
    lines: name to rows and their places on the axis, rising.
    """

    title: str
    dense: Mapping[str, float]
    amounts: tuple[float, ...]
    rows: tuple[str, ...]
    entries: Mapping[tuple[str, float], Entry]
    reference: str
    paper: PaperFigures | None
    missing: Sequence[tuple[str, float, int]]
    over: str
    lines: Mapping[str, Sequence[tuple[str, float]]]

    @property
    def begun(self) -> tuple[float, ...]:
        """Amounts with at least one cell."""
        return tuple(amount for amount in self.amounts if any((row, amount) in self.entries for row in self.rows))


def tabulate(outcome: Outcome) -> Table:
    """The table of what is done."""
    recipe = outcome.recipe
    figures = paper_figures(recipe.paper) if recipe.paper else None
    rows = tuple(outcome.rows)
    ours = {variant.name for variant in recipe.variants if not variant.published}
    by_place: dict[tuple[str, float], dict[int, Mapping[str, Any]]] = {}
    for record in outcome.records:
        by_place.setdefault((record["label"], record["amount"]), {})[record["seed"]] = record
    reference = rows[0]
    entries = {
        (label, amount): _entry(label, amount, by_place, reference, None if label in ours else figures)
        for label in rows
        for amount in recipe.amounts
        if (label, amount) in by_place
    }
    return Table(
        title=recipe.title,
        dense=outcome.dense,
        amounts=tuple(sorted(recipe.amounts)),
        rows=rows,
        entries=entries,
        reference=reference,
        paper=figures,
        missing=outcome.missing,
        over=recipe.over,
        lines=_lines(recipe),
    )


def _lines(recipe: ExperimentRecipe) -> dict[str, list[tuple[str, float]]]:
    lines: dict[str, list[tuple[str, float]]] = {}
    for variant in recipe.variants:
        if variant.line:
            asked = getattr(variant.of(recipe.prune), recipe.over)
            lines.setdefault(variant.line, []).append((variant.name, float(asked)))
    return {name: sorted(points, key=lambda point: point[1]) for name, points in lines.items()}


def _entry(
    label: str,
    amount: float,
    by_place: Mapping[tuple[str, float], Mapping[int, Mapping[str, Any]]],
    reference: str,
    figures: PaperFigures | None,
) -> Entry:
    found, other = by_place[label, amount], by_place.get((reference, amount), {})
    common = sorted(found.keys() & other.keys())
    difference = None
    if label != reference and common:
        mine, theirs = ([100 * side[seed]["mAP"] for seed in common] for side in (found, other))
        difference = paired_difference(mine, theirs)
    records = [found[seed] for seed in sorted(found)]
    published = figures.methods.get(records[0]["method"], {}).get(amount) if figures else None
    return Entry(
        mAP=spread([100 * record["mAP"] for record in records]),
        NDS=spread([100 * record["NDS"] for record in records]),
        difference=difference,
        loss_cut=spread([record["loss_cut"] for record in records]).mean,
        seconds=_known_mean(records, "seconds"),
        scoring_seconds=_known_mean(records, "scoring_seconds"),
        paper=published - figures.dense if published is not None and figures else None,
    )


def _known_mean(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [record[key] for record in records if record[key] is not None]
    return spread(known).mean if known else None


def to_markdown(table: Table) -> str:
    """Heading, the dense figures, and a table per amount."""
    dense = table.dense
    lines = [
        f"## {table.title}",
        "",
        f"Dense: mAP {100 * dense['mAP']:.1f}, NDS {100 * dense['NDS']:.1f}. Differences are to {table.reference}, "
        "seed by seed, with the 95 % interval of a bootstrap where there are three seeds or more.",
    ]
    if table.paper:
        lines += ["", f"Paper: points of mAP below its dense model, {table.paper.title}."]
    for amount in table.begun:
        lines += ["", f"### {100 * amount:g} %", "", *_rows(table, amount)]
    if table.missing:
        lines += ["", f"Missing: {len(table.missing)} cells, first {describe_missing(table.missing[0])}."]
    return "\n".join(lines) + "\n"


def describe_missing(cell: tuple[str, float, int]) -> str:
    label, amount, seed = cell
    return f"{label} at {100 * amount:g} % with seed {seed}"


def _rows(table: Table, amount: float) -> list[str]:
    lines = [
        "| method | mAP | NDS | to dense | to reference | paper, to dense | loss when cut | s to score | s in all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label in table.rows:
        entry = table.entries.get((label, amount))
        if entry is None:
            lines.append(f"| {label} |" + f" {ABSENT} |" * 8)
            continue
        cells = (
            label,
            shown(entry.mAP),
            shown(entry.NDS),
            signed(entry.mAP.mean - 100 * table.dense["mAP"]),
            shown_difference(entry.difference),
            ABSENT if entry.paper is None else signed(entry.paper),
            f"{entry.loss_cut:.2f}",
            shown_seconds(entry.scoring_seconds),
            shown_seconds(entry.seconds),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", MINUS)


def shown_seconds(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0f}"


def shown(value: Spread) -> str:
    if value.deviation is None:
        return f"{value.mean:.1f} (1 seed)"
    return f"{value.mean:.1f} {PLUS_MINUS} {value.deviation:.1f} ({value.count})"


def shown_difference(value: Difference | None) -> str:
    if value is None:
        return ABSENT
    if value.interval is None:
        return signed(value.mean)
    return f"{signed(value.mean)} [{signed(value.interval[0])}, {signed(value.interval[1])}]"


def to_json(table: Table) -> dict[str, Any]:
    """The same for programs."""
    cells = []
    for (label, amount), entry in table.entries.items():
        difference = entry.difference
        cells.append(
            {
                "row": label,
                "amount": amount,
                "mAP": entry.mAP.mean,
                "mAP_deviation": entry.mAP.deviation,
                "NDS": entry.NDS.mean,
                "seeds": entry.mAP.count,
                "difference": None if difference is None else difference.mean,
                "interval": None if difference is None or difference.interval is None else list(difference.interval),
                "loss_cut": entry.loss_cut,
                "scoring_seconds": entry.scoring_seconds,
                "seconds": entry.seconds,
                "paper_to_dense": entry.paper,
            }
        )
    return {
        "title": table.title,
        "dense": dict(table.dense),
        "reference": table.reference,
        "cells": cells,
        "missing": [list(cell) for cell in table.missing],
    }
