"""Latency tables of a model's stages: what each takes at several widths, on ONNX Runtime on this machine."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from altermoma.deploy.benchmark import pinned_threads
from altermoma.deploy.onnxruntime_backend import open_session
from altermoma.ops.prepare import FramePreparer
from altermoma.progress import track
from altermoma.recipe import ExportRecipe
from altermoma.workflow.compress import reference_batch
from altermoma.workflow.place import Workplace

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel
    from altermoma.pruning.latency import StageTable

KEPT = (1.0, 0.75, 0.5, 0.25)
"""Shares of the channels at which stages are measured."""
ROUNDS = 8
UNCHECKED = ExportRecipe(fp32_tolerance=1e9, fp32_frame_tolerance=1e9)
"""These models are cut blindly and thrown away: only their time counts, not what they answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Timed:
    """One stage at one width: its share of the dense FLOPs, its session and what it is fed."""

    share: float
    session: Any
    feeds: dict[str, Any]


def measure_tables(place: Workplace, model: FusionModel) -> dict[str, StageTable]:
    """Runs every stage at every width on the reference frame, all interleaved; the least of the rounds counts.

    One thread, so that times are those of the work and not of the machine's other guests.
    """
    from altermoma.pruning.latency import StageTable

    stages: dict[str, list[_Timed]] = {}
    for kept in track(KEPT, "Exporting at several widths"):
        for name, timed in _exported(place, model, kept).items():
            stages.setdefault(name, []).append(timed)
    with pinned_threads(1):
        least = {name: [float("inf")] * len(found) for name, found in stages.items()}
        for _ in track(range(ROUNDS), "Timing stages"):
            for name, found in stages.items():
                for index, timed in enumerate(found):
                    least[name][index] = min(least[name][index], _run(timed))
    return {
        name: StageTable.measured([(timed.share, ms) for timed, ms in zip(found, least[name], strict=True)])
        for name, found in stages.items()
    }


def _run(timed: _Timed) -> float:
    """Milliseconds of processor time: on a machine that others use, the wall's clock would count them too."""
    started = time.process_time()
    timed.session.run(None, timed.feeds)
    return 1e3 * (time.process_time() - started)


def _exported(place: Workplace, model: FusionModel, kept: float) -> dict[str, _Timed]:
    """Sessions of a model of which every channel group keeps its first channels."""
    import torch

    from altermoma.deploy.targets import load_target
    from altermoma.export.export_model import export_model
    from altermoma.pruning.flops import count_flops
    from altermoma.pruning.groups import fusion_groups
    from altermoma.pruning.surgery import shrink

    groups = fusion_groups(model)
    keep = {group.name: torch.arange(max(round(kept * group.width), 1)) for group in groups}
    smaller, batch = shrink(model, groups, keep).cpu(), reference_batch(place)
    frame = place.reader.read(place.val.tokens[0])
    result = export_model(
        smaller,
        FramePreparer(place.geometry).prepare(frame),
        preset=place.recipe.model,
        precision="fp32",
        trt_version=load_target(place.recipe.engine.target).tensorrt,
        recipe=UNCHECKED,
    )
    dense, left = count_flops(model, batch).by_stage(), count_flops(smaller, batch).by_stage()
    tensors = {**result.inputs, **result.reference}
    found = {}
    for name, graph in result.stages.items():
        session = open_session(graph.SerializeToString(), name, threads=1)
        feeds = {item.name: tensors[item.name] for item in session.get_inputs()}
        found[name] = _Timed(share=left[name] / dense[name], session=session, feeds=feeds)
    return found
