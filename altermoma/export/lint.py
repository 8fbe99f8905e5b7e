"""Holds a graph against the ONNX parser of one TensorRT version, before a vehicle does.

The worst findings are those that the parser accepts and answers wrongly. Sources: parser source and documentation of
onnx-tensorrt 8.5 to 11.x and its issue list (GridSample: NVIDIA/TensorRT#4646).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from altermoma.errors import ExportError
from altermoma.export.graph import constant_values, consumers, opset_of, producers, value_types
from altermoma.export.lint_tables import IRREGULAR, Version, max_opset, parse_version, supported_operators

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that this TensorRT version would refuse, or accept and compute wrongly.

    Attributes:
        rule: short name of the rule, stable over versions.
        node: name of the node or tensor concerned; empty for the graph as a whole.
    """

    trt_version: str
    severity: Severity
    rule: str
    stage: str
    node: str
    message: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.stage}: {self.node}" if self.node else self.stage
        return f"[{self.severity}] TensorRT {self.trt_version}, {where}: {self.message} ({self.rule}). {self.remedy}."


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A graph as the rules see it."""

    model: onnx.ModelProto
    stage: str
    trt_version: str
    version: Version
    opset: int
    constants: dict[str, NDArray[Any]]
    types: dict[str, onnx.TypeProto.Tensor]

    @cached_property
    def makers(self) -> dict[str, onnx.NodeProto]:
        return producers(self.model)

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        return consumers(self.model)

    @property
    def quantised(self) -> bool:
        return any(node.op_type == "DequantizeLinear" for node in self.model.graph.node)

    def elem_type(self, name: str) -> int:
        tensor = self.types.get(name)
        return int(tensor.elem_type) if tensor is not None else onnx.TensorProto.UNDEFINED

    def finding(self, severity: Severity, rule: str, node: str, message: str, remedy: str) -> Finding:
        return Finding(
            trt_version=self.trt_version,
            severity=severity,
            rule=rule,
            stage=self.stage,
            node=node,
            message=message,
            remedy=remedy,
        )


Rule = Callable[[Subject, onnx.NodeProto], Iterator[Finding]]


def lint(model: onnx.ModelProto, trt_version: str, stage: str = "") -> list[Finding]:
    """Everything that TensorRT `trt_version` would refuse or get wrong in this graph, worst first.

    Raises:
        RecipeError: not a TensorRT version.
    """
    from altermoma.export.lint_quantisation import QUANTISATION_RULES
    from altermoma.export.lint_rules import RULES
    from altermoma.export.lint_types import TYPE_RULES

    model = _named(model)
    subject = Subject(
        model=model,
        stage=stage or model.graph.name,
        trt_version=trt_version,
        version=parse_version(trt_version),
        opset=opset_of(model),
        constants=constant_values(model),
        types=_types(model),
    )
    findings = list(_graph_findings(subject))
    findings += [f for node in model.graph.node for f in _operator_findings(subject, node)]
    rules = (*RULES, *TYPE_RULES, *(QUANTISATION_RULES if subject.quantised else ()))
    findings += [f for node in model.graph.node for rule in rules for f in rule(subject, node)]
    return sorted(findings, key=lambda finding: finding.severity)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself where every node has a name; else a copy in which those without are called by their output."""
    if all(node.name for node in model.graph.node):
        return model
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for node in named.graph.node:
        node.name = node.name or f"{node.op_type} ({', '.join(node.output)})"
    return named


def raise_on_errors(findings: Iterable[Finding]) -> None:
    """Turns findings of severity `error` into one error that lists them.

    Raises:
        ExportError: where there are any.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        versions = ", ".join(dict.fromkeys(finding.trt_version for finding in errors))
        raise ExportError(
            f"the graphs do not suit TensorRT {versions}:\n" + "\n".join(f"  {finding}" for finding in errors),
            expected=f"graphs that TensorRT {versions} reads and computes as written",
            remedy="change the model as each line says, or choose a target with a later TensorRT",
        )


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    try:
        return value_types(model)
    except ExportError:
        # A graph for a later operator set, or with foreign operators: what inference cannot say is left out, and the
        # operator rules name the cause.
        infos = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        return {item.name: item.type.tensor_type for item in infos}


def _graph_findings(subject: Subject) -> Iterator[Finding]:
    limit = max_opset(subject.version)
    if subject.opset > limit:
        yield subject.finding(
            "error",
            "opset-too-new",
            "",
            f"operator set {subject.opset}, but this parser knows {limit} at most and may read later ones wrongly",
            "export with opset 17, which every version from 8.5 on reads",
        )
    for item in subject.model.opset_import:
        if item.domain not in ("", "ai.onnx"):
            yield subject.finding(
                "error",
                "foreign-domain",
                "",
                f"imports operators of {item.domain!r}",
                "export with standard operators only; they need no plugin",
            )
    public = {item.name for item in (*subject.model.graph.input, *subject.model.graph.output)}
    for name in sorted(public):
        if subject.version < (10, 0) and subject.elem_type(name) == onnx.TensorProto.INT64:
            yield subject.finding(
                "error",
                "int64-binding",
                name,
                "int64 input or output becomes int32 on this version, without notice",
                "make it int32 in the graph",
            )


def _operator_findings(subject: Subject, node: onnx.NodeProto) -> Iterator[Finding]:
    if node.op_type in IRREGULAR:
        yield subject.finding(
            "error", "irregular", node.name, f"{node.op_type} has no place in a stage", IRREGULAR[node.op_type]
        )
    elif node.domain in ("", "ai.onnx") and node.op_type not in supported_operators(subject.version):
        yield subject.finding(
            "error",
            "unsupported-operator",
            node.name,
            f"{node.op_type} is not imported by this version",
            "write it with simpler operators, or choose a later target",
        )
