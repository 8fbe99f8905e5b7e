"""Export steps: a model becomes stage graphs, and the graphs become a bundle that carries its own check."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from altermoma.deploy.bundle import BundleContent, StageGraph, library_versions, write_bundle
from altermoma.deploy.describe import describe_graph
from altermoma.deploy.manifest import AxisRange
from altermoma.deploy.pipeline import HostSide, Stopwatch
from altermoma.deploy.reference import Reference
from altermoma.deploy.stage_io import Arrays
from altermoma.deploy.targets import load_target
from altermoma.export.contract import ModelContract, load_contract
from altermoma.export.export_model import ExportResult, export_model
from altermoma.frames import CLASS_NAMES, Frame
from altermoma.models.stages import stage_modules
from altermoma.ops.decode import decode
from altermoma.progress import track
from altermoma.recipe import Precision
from altermoma.workflow.place import Workplace

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel

BUNDLE = "bundle"


def export_bundle(
    place: Workplace, model: FusionModel, precisions: tuple[Precision, ...], folder: Path, widths: dict[str, Any]
) -> dict[str, Any]:
    """Exports a model at each precision, checks parity with torch, and writes a bundle without metrics.

    Args:
        place: data and recipe.
        model: to export, in eval mode.
        precisions: to bake in.
        folder: gets `bundle/`.
        widths: channels before and after pruning, for the manifest.

    Returns:
        Per precision the parity of each stage and of the frame, and the lint's findings.
    """
    recipe = place.recipe
    target = load_target(recipe.engine.target)
    frame = place.reader.read(place.val.tokens[0])
    reference = reference_of(model, frame)
    results: dict[str, ExportResult] = {}
    for precision in track(precisions, "Exporting"):
        results[precision] = export_model(model, reference.host, precision, target.tensorrt, recipe.export)
    contract = load_contract(recipe.model)
    content = BundleContent(
        name=recipe.name,
        recipe=recipe.to_dict(),
        geometry=model.config.geometry,
        class_names=CLASS_NAMES,
        graphs={precision: _graphs(result, contract) for precision, result in results.items()},
        reference=reference,
        tolerances={"fp32": recipe.export.fp32_tolerance, "fp16": recipe.export.fp16_tolerance},
        widths=widths,
        versions=library_versions(),
        target=target.to_dict(),
    )
    write_bundle(folder / BUNDLE, content)
    return {precision: _record(result) for precision, result in results.items()}


def reference_of(model: FusionModel, frame: Frame) -> Reference:
    """The frame with everything that torch computes for it."""
    host, _ = HostSide(model.config.geometry).prepare(
        frame.images_vhw3, frame.points_p5, frame.calibration, Stopwatch()
    )
    tensors: Arrays = {}
    with torch.inference_mode():
        for module in stage_modules(model).values():
            known = {**host, **tensors}
            outputs = module.eval()(*(torch.from_numpy(known[name]) for name in module.inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            tensors |= {name: value.numpy() for name, value in zip(module.outputs, outputs, strict=True)}
    return Reference(
        images_vhw3=frame.images_vhw3,
        points_p5=frame.points_p5,
        calibration=frame.calibration,
        host=host,
        tensors=tensors,
        boxes=decode(tensors, model.config.geometry)[0],
    )


def _graphs(result: ExportResult, contract: ModelContract) -> dict[str, StageGraph]:
    axes = {
        name: AxisRange(min=axis.minimum, opt=axis.optimum, max=axis.maximum) for name, axis in contract.axes.items()
    }
    graphs = {}
    for stage, model in result.stages.items():
        held = contract.stage(stage)
        notes = {spec.name: (spec.meaning, spec.unit) for spec in (*held.inputs, *held.outputs)}
        graphs[stage] = describe_graph(model.SerializeToString(), name=stage, axes=axes, notes=notes)
    return graphs


def _record(result: ExportResult) -> dict[str, Any]:
    return {
        "parity": dataclasses.asdict(result.parity),
        "findings": [str(finding) for finding in result.findings],
    }
