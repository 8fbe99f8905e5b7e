"""A whole model to checked ONNX graphs: export, precision, lint and parity in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

import altermoma
from altermoma.errors import ExportError, RecipeError, UnsupportedError
from altermoma.export.contract import ModelContract, StageContract, TensorSpec, load_contract
from altermoma.export.graph import copy_model
from altermoma.export.lint import Finding, lint, raise_on_errors
from altermoma.export.lint_tables import parse_version
from altermoma.export.parity import Parity, measure_parity, raise_on_drift, torch_reference
from altermoma.export.passes.annotate import annotate
from altermoma.export.passes.decompose_norm import decompose_norm
from altermoma.export.passes.emulate_half import emulate_half
from altermoma.export.passes.names import readable_names
from altermoma.export.passes.to_fp16 import to_fp16
from altermoma.export.to_onnx import OPSET, export_stage
from altermoma.recipe import ExportRecipe, Precision

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel

Arrays = dict[str, NDArray[Any]]
_SIZES = tuple(range(5, 125, 2))
"""Rows of the arrays a stage is traced with, one size per axis. The parity check runs the graph at the real frame's
sizes, so that a size which tracing froze cannot pass."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export leaves.

    Attributes:
        stages: graphs by stage name, in the order in which they run.
        records: per stage its inputs, outputs and axes as plain dictionaries, for the bundle's manifest.
        findings: of the lint, warnings only (errors end the export).
        parity: of every stage output, alone and in the whole frame.
        inputs, reference: one frame's graph inputs, and torch's output of every stage for it.
    """

    precision: Precision
    trt_version: str
    stages: dict[str, onnx.ModelProto]
    records: dict[str, dict[str, Any]]
    findings: list[Finding]
    parity: list[Parity]
    inputs: Arrays
    reference: Arrays


def export_model(
    model: FusionModel,
    inputs: Mapping[str, NDArray[Any]],
    *,
    preset: str,
    precision: Precision,
    trt_version: str,
    recipe: ExportRecipe,
) -> ExportResult:
    """Exports every stage of a model, in eval mode, and checks the graphs.

    Args:
        model: dense or pruned.
        inputs: graph inputs of one real frame (`FramePreparer.prepare`).
        preset: name of the model, which names its stage contract.
        precision: fp32 or fp16.
        trt_version: TensorRT version of the target, which the lint goes by.
        recipe: operator set and tolerances.

    Raises:
        UnsupportedError: int8.
        RecipeError: inputs or model do not fit the contract.
        ExportError: the graphs cannot be exported, would be refused or computed wrongly by the target, hold weights
            outside the range of the precision, or differ from torch by more than the tolerance.
    """
    if precision == "int8":
        raise UnsupportedError(
            "export_model makes no int8 graphs",
            expected="fp32 or fp16",
            remedy="calibrate the fp32 graphs: altermoma.calib.export_int8",
        )
    if recipe.opset != OPSET:
        raise RecipeError(f"export.opset = {recipe.opset}", expected=f"{OPSET}, which TensorRT 8.5 to 11 read alike")
    contract = load_contract(preset)
    parse_version(trt_version)
    from altermoma.models.modes import eval_mode

    with eval_mode(model):
        graphs, reference, bindings = _traced(model, contract, inputs)
    graphs = {name: _finished(graph, contract, name, precision, trt_version) for name, graph in graphs.items()}
    findings = [finding for name, graph in graphs.items() for finding in lint(graph, trt_version, name)]
    raise_on_errors(findings)
    # What ONNX Runtime's CPU backend makes of an fp16 graph is too good; the roundings are written out for the check.
    checked = {n: emulate_half(g) for n, g in graphs.items()} if precision == "fp16" else graphs
    parity = measure_parity(checked, contract, dict(inputs), reference, *_tolerances(recipe, precision))
    raise_on_drift(parity)
    return ExportResult(
        precision=precision,
        trt_version=trt_version,
        stages=graphs,
        records={stage.name: stage_record(contract, stage, precision, bindings) for stage in contract.stages},
        findings=findings,
        parity=parity,
        inputs={spec.name: inputs[spec.name] for spec in frame_inputs(contract)},
        reference=reference,
    )


def _tolerances(recipe: ExportRecipe, precision: Precision) -> tuple[float, float]:
    """Of a stage by itself, and of the frame."""
    if precision == "fp16":
        return recipe.fp16_tolerance, recipe.fp16_frame_tolerance
    return recipe.fp32_tolerance, recipe.fp32_frame_tolerance


def _traced(
    model: FusionModel, contract: ModelContract, inputs: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, onnx.ModelProto], Arrays, dict[str, int]]:
    """The fp32 graph of every stage, torch's outputs for the frame, and the sizes of its axes and widths."""
    from altermoma.models.stages import stage_modules

    modules = stage_modules(model)
    bindings = _check(contract, frame_inputs(contract), inputs, {})
    reference = torch_reference(modules, inputs)
    made = [spec for stage in contract.stages for spec in stage.outputs]
    bindings = _check(contract, made, reference, bindings)
    graphs = {
        stage.name: export_stage(modules[stage.name], contract, stage.name, _examples(contract, stage, bindings))
        for stage in contract.stages
    }
    return graphs, reference, bindings


def frame_inputs(contract: ModelContract) -> tuple[TensorSpec, ...]:
    """What the host hands to the stages: inputs that no stage gives."""
    return tuple(spec for stage in contract.stages for spec in stage.inputs if not spec.between)


def _check(
    contract: ModelContract, specs: Iterable[TensorSpec], tensors: Mapping[str, NDArray[Any]], known: Mapping[str, int]
) -> dict[str, int]:
    """Holds tensors against the contract; gives the sizes of all axes and widths met so far."""
    bindings = dict(known)
    for spec in specs:
        if spec.name not in tensors:
            raise RecipeError(
                f"the frame lacks {spec.name}",
                expected=f"{spec.dtype} {list(spec.shape)}: {spec.meaning}",
                remedy="make the inputs with altermoma.ops.prepare.FramePreparer of the model's geometry",
            )
        contract.check_array(spec, tensors[spec.name], bindings)
    return bindings


def stage_record(
    contract: ModelContract, stage: StageContract, precision: Precision, bindings: Mapping[str, int]
) -> dict[str, Any]:
    """The stage's contract as it holds for these graphs: widths as numbers, dtypes of this precision."""

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        half = precision == "fp16" and spec.between and spec.dtype == "float32"
        return {
            "name": spec.name,
            "dtype": "float16" if half else spec.dtype,
            "shape": [bindings[d] if isinstance(d, str) and d in contract.widths else d for d in spec.shape],
            "meaning": spec.meaning,
            "unit": spec.unit,
        }

    used = {d for spec in (*stage.inputs, *stage.outputs) for d in contract.dynamic_axes(spec).values()}
    axes = {n: {"min": a.minimum, "opt": a.optimum, "max": a.maximum} for n, a in contract.axes.items() if n in used}
    return {
        "name": stage.name,
        "meaning": stage.meaning,
        "inputs": [tensor(spec) for spec in stage.inputs],
        "outputs": [tensor(spec) for spec in stage.outputs],
        "axes": axes,
    }


def _examples(contract: ModelContract, stage: StageContract, bindings: Mapping[str, int]) -> Arrays:
    """Arrays to trace with: every table entry points to row 0, every dynamic axis has a size of its own."""
    sizes = {**bindings, **dict(zip(contract.axes, _SIZES, strict=False))}
    rng = np.random.default_rng(0)
    arrays: Arrays = {}
    for spec in stage.inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        is_table = spec.dtype == "int32"
        arrays[spec.name] = np.zeros(shape, np.int32) if is_table else rng.random(shape, dtype=np.float32)
    return arrays


def _finished(
    graph: onnx.ModelProto, contract: ModelContract, name: str, precision: Precision, trt_version: str
) -> onnx.ModelProto:
    stage = contract.stage(name)
    if parse_version(trt_version) < (8, 6):
        graph = decompose_norm(graph)
    if precision == "fp16":
        graph = readable_names(to_fp16(graph, stage))
    return finished(graph, contract, name, precision)


def finished(graph: onnx.ModelProto, contract: ModelContract, name: str, precision: Precision) -> onnx.ModelProto:
    """A stage's graph with what a reader of the file needs, checked.

    Raises:
        ExportError: not valid ONNX.
    """
    stage = contract.stage(name)
    metadata = {
        "stage": name,
        "preset": contract.model,
        "precision": precision,
        "content_key": _content_key(graph),
        "altermoma_version": altermoma.__version__,
    }
    graph = annotate(graph, stage, metadata)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the {precision} graph of stage {name} is not valid ONNX: {error}") from error
    return graph


def _content_key(graph: onnx.ModelProto) -> str:
    """Twelve hex digits over the operators and weights, whatever made them."""
    bare = copy_model(graph)
    for field in ("producer_name", "producer_version", "metadata_props", "doc_string"):
        bare.ClearField(field)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()[:12]
