"""What a model's stages take on ONNX Runtime on this machine: at several widths, and of one model beside another."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
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
UNCHECKED = ExportRecipe(
    fp32_tolerance=1e9, fp32_frame_tolerance=1e9, fp16_tolerance=1e9, fp16_frame_tolerance=1e9, int8_tolerance=1e9
)
"""These models are cut blindly and thrown away: only their time counts, not what they answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedStage:
    """One stage of one model: its session and what it is fed."""

    session: Any
    feeds: dict[str, Any]


def measure_tables(place: Workplace, model: FusionModel) -> dict[str, StageTable]:
    """Runs every stage at every width on the reference frame; see `least_ms`. Which widths: see `KEPT`."""
    from altermoma.pruning.flops import count_flops
    from altermoma.pruning.groups import fusion_groups
    from altermoma.pruning.latency import StageTable

    batch, groups = reference_batch(place), fusion_groups(model)
    dense = count_flops(model, batch).by_stage()
    stages: dict[str, list[TimedStage]] = {}
    shares: dict[str, list[float]] = {}
    for kept in track(KEPT, "Exporting at several widths"):
        smaller = narrowed(model, {group.name: max(round(kept * group.width), 1) for group in groups})
        left = count_flops(smaller, batch).by_stage()
        for name, timed in timed_stages(place, smaller).items():
            stages.setdefault(name, []).append(timed)
            shares.setdefault(name, []).append(left[name] / dense[name])
    least = least_ms(stages)
    return {name: StageTable.measured(list(zip(shares[name], least[name], strict=True))) for name in stages}


def least_ms(stages: Mapping[str, Sequence[TimedStage]]) -> dict[str, list[float]]:
    """Milliseconds of every stage in each of its models, all interleaved in this process; the least of `ROUNDS`.

    One thread, so that times are those of the work and not of the machine's other guests.
    """
    least = {name: [float("inf")] * len(found) for name, found in stages.items()}
    with pinned_threads(1):
        for _ in track(range(ROUNDS), "Timing stages"):
            for name, found in stages.items():
                for index, timed in enumerate(found):
                    least[name][index] = min(least[name][index], _run(timed))
    return least


def _run(timed: TimedStage) -> float:
    """Milliseconds of processor time: on a machine that others use, the wall's clock would count them too."""
    started = time.process_time()
    timed.session.run(None, timed.feeds)
    return 1e3 * (time.process_time() - started)


def narrowed(model: FusionModel, widths: Mapping[str, int]) -> FusionModel:
    """The model with the first channels of every group, on the CPU."""
    import torch

    from altermoma.pruning.groups import fusion_groups
    from altermoma.pruning.surgery import shrink

    return shrink(model, fusion_groups(model), {name: torch.arange(width) for name, width in widths.items()}).cpu()


def timed_stages(place: Workplace, model: FusionModel) -> dict[str, TimedStage]:
    """Sessions of the stages of a model on the CPU in fp32, to be fed with the reference frame."""
    from altermoma.deploy.targets import load_target
    from altermoma.export.export_model import export_model

    frame = place.reader.read(place.val.tokens[0])
    result = export_model(
        model,
        FramePreparer(place.geometry).prepare(frame),
        preset=place.recipe.model,
        precision="fp32",
        trt_version=load_target(place.recipe.engine.target).tensorrt,
        recipe=UNCHECKED,
    )
    tensors = {**result.inputs, **result.reference}
    found = {}
    for name, graph in result.stages.items():
        session = open_session(graph.SerializeToString(), name, threads=1)
        feeds = {item.name: tensors[item.name] for item in session.get_inputs()}
        found[name] = TimedStage(session=session, feeds=feeds)
    return found
