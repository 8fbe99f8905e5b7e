"""Accuracy over measured time: of selections that remove shares of different things, which is ahead at the same time.

A tenth of the FLOPs and a tenth of the milliseconds are different models, so rows are not compared at the same amount
but where they take the same time: on the line from the dense model through a row's points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from altermoma.experiments.page import figure, rows_of
from altermoma.experiments.plot import Axes, line_plot
from altermoma.experiments.run import Outcome
from altermoma.experiments.statistics import spread
from altermoma.experiments.table import ABSENT

TIMES = (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)
"""Shares of the dense time at which rows are compared."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row at one amount, mean over its seeds.

    Attributes:
        amount: asked for, of what the row's budget counts.
        time, flops: what is left of the dense model's, all stages; time on ONNX Runtime, both models in turns.
        mAP: in percent, after fine-tuning.
        loss_cut: task loss right after cutting.
        seeds: that were averaged.
    """

    amount: float
    time: float
    flops: float
    mAP: float  # noqa: N815 (the metric's name)
    loss_cut: float
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Front:
    """Points of every row from slow to fast, the dense model's mAP in percent and its milliseconds."""

    rows: Mapping[str, Sequence[Point]]
    dense: float
    dense_ms: float

    def at(self, row: str, time: float) -> float | None:
        """mAP of a row at a share of the dense time; None beyond its fastest point."""
        points = self.rows[row]
        times, found = [1.0, *(p.time for p in points)], [self.dense, *(p.mAP for p in points)]
        if not points or time < min(times):
            return None
        order = np.argsort(times)
        return float(np.interp(time, np.asarray(times)[order], np.asarray(found)[order]))


def front_of(outcome: Outcome) -> Front | None:
    """The front of an experiment whose cells are timed; None for another, or before the first cell."""
    timed = [record for record in outcome.records if "stage_ms" in record]
    if not timed:
        return None
    rows = {row: _points([record for record in timed if record["label"] == row]) for row in outcome.rows}
    dense_ms = spread([_total(record, "dense") for record in timed]).mean
    return Front(rows=rows, dense=100 * outcome.dense["mAP"], dense_ms=dense_ms)


def _points(records: Sequence[Mapping[str, Any]]) -> list[Point]:
    by_amount: dict[float, list[Mapping[str, Any]]] = {}
    for record in records:
        by_amount.setdefault(record["amount"], []).append(record)

    def mean(found: Sequence[float]) -> float:
        return spread(found).mean

    points = [
        Point(
            amount=amount,
            time=mean([_total(r, "cut") / _total(r, "dense") for r in found]),
            flops=mean([r["removed"]["flops_after"]["total"] / r["removed"]["flops_before"]["total"] for r in found]),
            mAP=mean([100 * r["mAP"] for r in found]),
            loss_cut=mean([r["loss_cut"] for r in found]),
            seeds=len(found),
        )
        for amount, found in by_amount.items()
    ]
    return sorted(points, key=lambda point: -point.time)


def _total(record: Mapping[str, Any], model: str) -> float:
    return float(sum(record["stage_ms"][model].values()))


HEAD = ("selection", "asked", "time left", "FLOPs left", "loss when cut", "mAP", "seeds")


def _cells(front: Front) -> list[tuple[str, ...]]:
    def cells(row: str, point: Point) -> tuple[str, ...]:
        left = f"{point.time:.2f}", f"{point.flops:.2f}"
        return row, f"{100 * point.amount:g} %", *left, f"{point.loss_cut:.2f}", f"{point.mAP:.1f}", str(point.seeds)

    return [cells(row, point) for row, points in front.rows.items() for point in points]


def _compared(front: Front) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of mAP at the same time, where two rows or more have points on both sides."""
    held = {time: [front.at(row, time) for row in front.rows] for time in TIMES}
    times = [time for time in TIMES if sum(value is not None for value in held[time]) > 1]
    head = ("mAP at a time of", *(f"{time:g}" for time in times))
    body = [
        (row, *(ABSENT if (value := held[time][index]) is None else f"{value:.1f}" for time in times))
        for index, row in enumerate(front.rows)
    ]
    return head, body


def _told(front: Front) -> str:
    return (
        f"Time and FLOPs are those of all stages, as shares of the dense model's; its stages take {front.dense_ms:.0f} "
        "ms of one core in ONNX Runtime, and every model was timed in turns with it."
    )


BETWEEN = "Between a row's points, and from the dense model to the first, along the line."


def front_markdown(front: Front) -> str:
    """A section with every point, and the rows where they take the same time."""
    head, body = _compared(front)
    lines = ["### Accuracy over measured time", "", _told(front), "", *_markdown(HEAD, _cells(front))]
    return "\n".join([*lines, "", BETWEEN, "", *_markdown(head, body)]) + "\n"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(row) + " |" for row in rows]


def front_html(front: Front) -> str:
    """The same with a plot, as a section of the page."""
    end = (1.0, front.dense)
    lines = {row: [*((p.time, p.mAP) for p in reversed(points)), end] for row, points in front.rows.items()}
    fastest = min(x for points in lines.values() for x, _ in points)
    marks = [round(mark, 1) for mark in np.arange(np.floor(10 * fastest) / 10, 1.01, 0.1)]
    axes = Axes(x="time, as a share of the dense model's", y="mAP, %", marks=marks)
    plot = figure(line_plot(lines, axes, ("dense", front.dense)), "Accuracy after fine-tuning over measured time.")
    head, body = _compared(front)
    return (
        f"<h2>Accuracy over measured time</h2><p>{escape(_told(front))}</p>"
        f'<div class="figures">{plot}</div>{rows_of(HEAD, _cells(front))}<p>{BETWEEN}</p>{rows_of(head, body)}'
        "<h2>By what was asked</h2>"
    )


def front_json(front: Front) -> dict[str, Any]:
    """The same for programs."""
    return {
        "dense_ms": front.dense_ms,
        "rows": {row: [vars(point) for point in points] for row, points in front.rows.items()},
    }
