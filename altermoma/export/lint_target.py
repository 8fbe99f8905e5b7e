"""Graphs of any origin held against a whole target: its TensorRT version, its precisions and its accelerator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from altermoma.errors import ExportError
from altermoma.export.lint import Finding, lint
from altermoma.export.lint_tables import DLA_OPERATORS
from altermoma.export.numbers import PRECISIONS, QUANTISERS


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file with its weights.

    Raises:
        ExportError: missing, or no ONNX model.
    """
    try:
        model = onnx.load(str(path))
    except FileNotFoundError as error:
        raise ExportError(f"no file {error.filename or path}", expected="an ONNX model and its weights") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(
            f"{path} is no ONNX model: {error}", expected="an ONNX model", remedy="export it again"
        ) from error
    if not model.graph.node and not model.graph.output:
        raise ExportError(f"{path} holds no graph", expected="an ONNX model", remedy="export it again")
    return model


def lint_for(
    model: onnx.ModelProto, trt_version: str, *, precisions: Sequence[str], stage: str = "", dla: bool = False
) -> list[Finding]:
    """Everything of `lint`, and precisions that the target does not offer.

    Args:
        model: any graph; nodes without a name are called by operator and output.
        trt_version: of the target.
        precisions: that its GPU computes and this TensorRT builds.
        stage: what to call the graph.
        dla: whether its accelerator is to run it: what it lacks is a warning each.

    Raises:
        RecipeError: not a TensorRT version.
    """
    findings = lint(model, trt_version, stage)
    findings += _precisions(model, trt_version, precisions, stage)
    if dla:
        findings += _accelerator(model, trt_version, stage)
    return sorted(findings, key=lambda finding: finding.severity)


def _precisions(model: onnx.ModelProto, trt_version: str, precisions: Sequence[str], stage: str) -> Iterator[Finding]:
    """The first tensor of each precision that the target lacks."""
    weights = {item.name: item.data_type for item in model.graph.initializer}
    wanted: dict[str, str] = {}
    for node in model.graph.node:
        told = (node.input[0], *node.input[2:3]) if node.op_type in QUANTISERS else node.input
        for name in told:
            precision = PRECISIONS.get(weights.get(name, onnx.TensorProto.UNDEFINED), "")
            if precision:
                wanted.setdefault(precision, node.name or node.op_type)
    for precision, node_name in wanted.items():
        if precision not in precisions:
            yield Finding(
                trt_version=trt_version,
                severity="error",
                rule="precision",
                stage=stage or model.graph.name,
                node=node_name,
                message=f"computes in {precision}, which this target does not offer",
                remedy=f"export in {', '.join(precisions)}",
            )


def _accelerator(model: onnx.ModelProto, trt_version: str, stage: str) -> Iterator[Finding]:
    for node in model.graph.node:
        if node.op_type not in DLA_OPERATORS:
            yield Finding(
                trt_version=trt_version,
                severity="warning",
                rule="dla-operator",
                stage=stage or model.graph.name,
                node=node.name or f"{node.op_type} ({node.output[0]})",
                message=f"{node.op_type} is not native to the DLA",
                remedy="it runs on the GPU if gpu_fallback is asked for; else keep the stage on the GPU",
            )
