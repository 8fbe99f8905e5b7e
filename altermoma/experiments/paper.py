"""The paper's figures for its tables 1, 4, 5 and 9, in percent: another data set, never to be mixed with ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from altermoma.errors import RecipeError

FILE = "paper_figures.json"


@dataclass(frozen=True, kw_only=True)
class PaperFigures:
    """One table of the paper.

    Attributes:
        title: model, backbones and data.
        dense: mAP of the dense model, percent.
        methods: mAP in percent by method and amount.
    """

    title: str
    dense: float
    methods: Mapping[str, Mapping[float, float]]


def paper_figures(key: str) -> PaperFigures:
    """The table that a recipe's `paper` names.

    Raises:
        RecipeError: no such table.
    """
    text = resources.files("altermoma.experiments").joinpath(FILE).read_text(encoding="utf-8")
    tables = json.loads(text)["tables"]
    if key not in tables:
        raise RecipeError(f"paper = {key!r}", expected="one of " + ", ".join(tables))
    found = tables[key]
    methods = {name: {float(a): m for a, m in row.items()} for name, row in found["mAP"].items()}
    return PaperFigures(title=found["title"], dense=found["dense"], methods=methods)
