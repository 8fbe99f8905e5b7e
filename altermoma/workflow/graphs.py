"""Export steps: a model becomes stage graphs, and the graphs become a bundle that carries its own check."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altermoma.deploy.bundle import BundleContent, StageGraph, library_versions, write_bundle
from altermoma.deploy.manifest import STAGES, AxisRange, TensorSpec
from altermoma.deploy.reference import Reference
from altermoma.deploy.targets import load_target
from altermoma.deploy.tensorrt_config import settled
from altermoma.export.contract import load_contract
from altermoma.export.export_model import Arrays, ExportResult, export_model
from altermoma.export.numbers import quantised_numbers
from altermoma.export.parity import Parity
from altermoma.export.sparsity import SparsityReport, require_two_four, sparsity_report
from altermoma.frames import CLASS_NAMES, Frame
from altermoma.geometry import Geometry
from altermoma.ops.decode import decode
from altermoma.ops.prepare import FramePreparer
from altermoma.progress import track
from altermoma.recipe import ExportRecipe, Precision, Recipe
from altermoma.workflow.calibrate import SEARCH, SENSITIVITY_FILE, int8_of
from altermoma.workflow.place import Workplace

if TYPE_CHECKING:
    import onnx

    from altermoma.calib.export_int8 import Int8Export
    from altermoma.models.fusion import FusionModel


def export_bundle(
    place: Workplace,
    model: FusionModel,
    precisions: tuple[Precision, ...],
    folder: Path,
    widths: dict[str, Any],
    *,
    frame: Frame | None = None,
) -> dict[str, Any]:
    """Exports a model at each precision, checks parity with torch, and writes a bundle without metrics.

    Args:
        place: data and recipe.
        model: to export, in eval mode.
        precisions: to bake in.
        folder: of the bundle.
        widths: channels before and after pruning, for the manifest.
        frame: the bundle's reference; without it the first of the validation split.

    Returns:
        Per precision the parity of each stage and of the frame, and the lint's findings; at fp32 the sparsity report.

    Raises:
        ExportError: among others, weights that should be 2:4 and are not.
    """
    recipe, geometry = place.recipe, model.config.geometry
    target = load_target(recipe.engine.target)
    target.require_builder(settled(target.builder, recipe.builder))
    frame = frame or place.reader.read(place.val.tokens[0])
    inputs = FramePreparer(geometry).prepare(frame)
    results = _exported(model, inputs, precisions, recipe, target.tensorrt)
    int8: Int8Export | None = None
    notes: dict[str, bytes] = {}
    if "int8" in precisions:
        int8, notes = int8_of(place, results["fp32"], geometry, folder.parent / "calibration")
        results["int8"] = int8.tensorrt
    graphs: dict[str, dict[str, StageGraph]] = {precision: _graphs(result) for precision, result in results.items()}
    variants: dict[str, dict[str, StageGraph]] = {}
    if int8 is not None:
        graphs["int8"], variants["int8"] = int8_graphs(int8)
    report = _sparsity(recipe, results)
    content = BundleContent(
        name=recipe.name,
        recipe=recipe.to_dict(),
        geometry=geometry,
        class_names=CLASS_NAMES,
        graphs=graphs,
        reference=_reference(frame, results[precisions[0]], geometry),
        onnxruntime=variants,
        notes=notes,
        tolerances=_tolerances(recipe.export),
        widths=widths,
        versions=library_versions(),
        target=target.to_dict(),
        sparsity=report.to_json(),
    )
    write_bundle(folder, content)
    return _records(results, report, int8, notes)


def _exported(
    model: FusionModel, inputs: Arrays, precisions: tuple[Precision, ...], recipe: Recipe, trt_version: str
) -> dict[Precision, ExportResult]:
    """The graphs that are not calibrated, by precision."""
    results: dict[Precision, ExportResult] = {}
    for precision in track([p for p in precisions if p != "int8"], "Exporting"):
        results[precision] = export_model(
            model,
            inputs,
            preset=recipe.model,
            precision=precision,
            trt_version=trt_version,
            recipe=recipe.export,
        )
    return results


def _records(
    results: Mapping[Precision, ExportResult],
    report: SparsityReport,
    int8: Int8Export | None,
    notes: Mapping[str, bytes],
) -> dict[str, Any]:
    """What `export_bundle` returns."""
    records: dict[str, Any] = {precision: _record(result) for precision, result in results.items()}
    records["fp32"]["sparsity"] = report.to_json()
    if int8 is not None:
        records["int8"] |= int8.to_dict()
    if SENSITIVITY_FILE in notes:
        records["int8"][SEARCH] = json.loads(notes[SENSITIVITY_FILE])
    return records


def _tolerances(recipe: ExportRecipe) -> dict[str, float]:
    return {"fp32": recipe.fp32_tolerance, "fp16": recipe.fp16_tolerance, "int8": recipe.int8_tolerance}


def _sparsity(recipe: Recipe, results: Mapping[Precision, ExportResult]) -> SparsityReport:
    """Which weights are 2:4, and an error where they should be and are not."""
    plain = results["fp32"]
    report = sparsity_report(
        plain.stages,
        load_contract(recipe.model),
        {**plain.inputs, **plain.reference},
        rule=recipe.prune.two_four_rule,
        # fp32 has no sparse kernels: what is exported in fp32 alone, as the dense yardstick, is not asked for 2:4.
        asked=recipe.engine.sparsity if set(results) > {"fp32"} else "dense",
    )
    require_two_four(report, {precision: result.stages for precision, result in results.items()})
    return report


def _reference(frame: Frame, result: ExportResult, geometry: Geometry) -> Reference:
    """The frame with everything that torch computes for it."""
    return Reference(
        images_vhw3=frame.images_vhw3,
        points_p5=frame.points_p5,
        calibration=frame.calibration,
        host=result.inputs,
        tensors={
            spec["name"]: result.reference[spec["name"]] for r in result.records.values() for spec in r["outputs"]
        },
        boxes=decode(result.reference, geometry)[0],
    )


def _graphs(result: ExportResult) -> dict[str, StageGraph]:
    return stage_graphs(result.stages, result.records)


def int8_graphs(int8: Int8Export) -> tuple[dict[str, StageGraph], dict[str, StageGraph]]:
    """The graphs for TensorRT and those for ONNX Runtime, with what was measured of each."""
    noise, rounding = int8.noise, int8.rounding
    ours, theirs = _graphs(int8.tensorrt), stage_graphs(int8.onnxruntime, int8.records)
    return (
        {n: dataclasses.replace(g, noise=noise["tensorrt"][n], rounding=rounding[n]) for n, g in ours.items()},
        {n: dataclasses.replace(g, noise=noise["onnxruntime"][n]) for n, g in theirs.items()},
    )


def stage_graphs(stages: dict[str, onnx.ModelProto], records: dict[str, dict[str, Any]]) -> dict[str, StageGraph]:
    return {name: _graph(graph, records[name]) for name, graph in stages.items()}


def _graph(graph: onnx.ModelProto, record: dict[str, Any]) -> StageGraph:
    def specs(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in record[key])

    axes = {name: AxisRange(**bounds) for name, bounds in record["axes"].items()}
    return StageGraph(
        onnx=graph.SerializeToString(),
        inputs=specs("inputs"),
        outputs=specs("outputs"),
        axes=axes,
        numbers=quantised_numbers(graph),
    )


def _record(result: ExportResult) -> dict[str, Any]:
    alone = {stage: _worst([p for p in result.parity if (p.scope, p.stage) == ("stage", stage)]) for stage in STAGES}
    whole = _worst([p for p in result.parity if (p.scope, p.stage) == ("frame", STAGES[-1])])
    return {"stages": alone, "frame": whole, "findings": [str(finding) for finding in result.findings]}


def _worst(found: list[Parity]) -> dict[str, float]:
    """Over the outputs of a stage: the largest differences and the smallest cosine."""
    return {
        "max": max(item.max_abs for item in found),
        "mean": max(item.mean_abs for item in found),
        "scaled_max": max(item.scaled_max for item in found),
        "cosine": min(item.cosine for item in found),
    }
