"""The analysis of an experiment's model, from its recipe and from the scores that its cells left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from altermoma.experiments.analysis import BackboneAnalysis, analyse, frame_of, rank_correlations
from altermoma.experiments.analysis_page import analysis_page
from altermoma.experiments.cells import cells_of
from altermoma.experiments.recipe import ExperimentRecipe
from altermoma.experiments.workbench import Workbench
from altermoma.pruning.channels import ChannelVectors
from altermoma.recipe import Partition
from altermoma.storage import write_json, write_text
from altermoma.workflow.scoring import scoring_batches


def run_analysis(recipe: ExperimentRecipe, folder: Path, file: Path) -> None:
    """Writes the page `file` and JSON beside it.

    The model is cut as the experiment's first cell has it. Rank correlations are of the methods whose scores lie in
    `folder`.
    """
    bench = Workbench(recipe, folder)
    cells = list(cells_of(dataclasses.replace(recipe, seeds=1), bench.place.recipe.prune))
    first = cells[0]
    scores, _ = bench.scores(first)
    pruned = bench.cut(first.prune, scores).model
    frame = frame_of(bench.dense, bench.val[0].inputs)
    batches = scoring_batches(bench.place, dataclasses.replace(bench.place.recipe.prune, method="altermoma"))
    found = analyse(bench.dense, batches, bench.place.recipe.prune, pruned, frame)
    kept: dict[str, ChannelVectors] = {}
    for cell in cells:
        vectors = bench.kept_scores(cell) if cell.amount == first.amount else None
        if vectors is not None:
            kept[cell.label] = vectors
    correlations = rank_correlations(kept) if len(kept) > 1 else {}
    write_text(file, analysis_page(f"Analysis: {recipe.title}", found, correlations))
    write_json(file.with_suffix(".json"), {"backbones": _plain(found), "rank_correlations": correlations})


def _plain(found: dict[Partition, BackboneAnalysis]) -> dict[str, Any]:
    """Without the maps."""
    return {
        partition: {
            "rank_correlation": backbone.rank_correlation,
            "outranked": backbone.outranked,
            "layers": [dataclasses.asdict(layer) for layer in backbone.layers],
            "channels": [dataclasses.asdict(channel) for channel in backbone.channels],
        }
        for partition, backbone in found.items()
    }
