"""`altermoma-export` as a function: run the plan, then leave bundle, report and summary."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from altermoma.deploy.bundle import copy_bundle
from altermoma.frames import Boxes
from altermoma.progress import busy
from altermoma.recipe import Recipe
from altermoma.report.html import write_report
from altermoma.report.scenes import Scene, draw_scene
from altermoma.report.summary import Summary
from altermoma.report.table import print_summary
from altermoma.storage import content_key
from altermoma.workflow.accuracy import DETECTIONS_FILE
from altermoma.workflow.calibrate import check_untuned
from altermoma.workflow.detections import read_detections
from altermoma.workflow.engines import check_buildable
from altermoma.workflow.given_tables import check_tables
from altermoma.workflow.keys import code_version
from altermoma.workflow.mask_weights import check_physical
from altermoma.workflow.place import Workplace
from altermoma.workflow.plan import ENGINES, bundle_of, plan
from altermoma.workflow.runs import RunFolder, open_run
from altermoma.workflow.scoring import with_open_keys_filled
from altermoma.workflow.sparsity import check_sparsity
from altermoma.workflow.steps import run_steps, step_keys
from altermoma.workflow.summarise import summarise


def run(recipe: Recipe, out: Path | None = None, *, same_only: bool = False) -> Summary:
    """Does everything the recipe asks for and prints the summary table.

    Args:
        recipe: what to do.
        out: run folder; None continues an unfinished run of the same content or starts a new one below `runs/`.
        same_only: refuse to replace the results of another recipe, version or data set in `out`.

    Raises:
        AltermomaError: any of its kinds; work already done is kept and reused by the next run.
    """
    started = time.monotonic()
    check_buildable(recipe.engine)
    check_sparsity(recipe)
    check_physical(recipe)
    check_tables(recipe)
    check_untuned(recipe)
    recipe = with_open_keys_filled(recipe)
    place = Workplace(recipe)
    with busy("Reading the tables"):
        steps, code = plan(place), code_version()
    with open_run(recipe, content_key({"steps": step_keys(steps, code)}), out, same_only=same_only) as folder:
        results = run_steps(steps, folder.steps, code)
        with busy("Bundle and report"):
            summary = summarise(recipe, results, started, str(folder.bundle))
            leave_bundle(folder, summary)
            write_report(folder.report, summary, shown_scene(place, folder.steps))
            summary.write(folder.summary)
    print_summary(summary)
    print(f"bundle: {folder.bundle}\nreport: {folder.report}\nsummary: {folder.summary}")
    return summary


def leave_bundle(folder: RunFolder, summary: Summary) -> None:
    """Copies the checked bundle to its place, with the run's metrics in its manifest."""
    metrics = {
        name: {"mAP": variant.mAP, "NDS": variant.NDS, "gflops": variant.gflops, "params": variant.params}
        for name, variant in summary.variants.items()
    }
    copy_bundle(bundle_of(folder.steps, ENGINES), folder.bundle, metrics=metrics, recipe=summary.recipe)


def shown_scene(place: Workplace, steps: Path) -> Scene:
    """The validation frame with most true boxes in range, with what the dense and the pruned model found in it."""
    dense = read_detections(steps / "dense-eval" / DETECTIONS_FILE)
    pruned = read_detections(steps / "pruned-eval" / DETECTIONS_FILE)
    token = max(place.val.tokens, key=lambda token: len(_truth(place, token)))
    frame = place.reader.read(token)
    extent = max(map(abs, place.geometry.point_range[:2]))
    boxes = {"truth": _truth(place, token), "dense": dense[token], "pruned": pruned[token]}
    return draw_scene(frame, boxes, extent)


def _truth(place: Workplace, token: str) -> Boxes:
    """True boxes that some sensor point lies in, as the evaluation counts them."""
    found = place.reader.truth(token)
    if found is None:
        return Boxes.empty()
    boxes, points = found
    return boxes.select(np.asarray(points > 0))
