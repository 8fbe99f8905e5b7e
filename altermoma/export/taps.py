"""Looking inside a graph: inner tensors as outputs, tensors of two graphs that belong together, and one layer alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.errors import ExportError, UnsupportedError
from altermoma.export.graph import FLOAT, HALF, copy_model, drop_dead, producers, value_types

Arrays = dict[str, NDArray[Any]]
_FLOATS = (FLOAT, HALF)
DECISIONS = frozenset({"ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "TopK"})
"""Operators whose answer is a choice: rounding turns a near tie over, and all behind it is about something else."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One layer in two graphs: its node, and what the tensor that it makes is called in each."""

    node: str
    op: str
    wanted: str
    found: str


def paired(wanted: onnx.ModelProto, found: onnx.ModelProto) -> list[Pair]:
    """Float results of nodes that both graphs have by name and operator, in the order of the first.

    Casts and Q/DQ pairs that precision adds have no partner: what they do shows in the layers behind them.
    """
    there = {node.name: node for node in found.graph.node if node.name}
    wanted_floats, found_floats = _floats(wanted), _floats(found)
    pairs = []
    for node in wanted.graph.node:
        twin = there.get(node.name)
        if twin is None or twin.op_type != node.op_type or node.op_type == "Constant":
            continue
        for left, right in zip(node.output, twin.output, strict=False):
            if left in wanted_floats and right in found_floats:
                pairs.append(Pair(node=node.name, op=node.op_type, wanted=left, found=right))
    return pairs


def decisions(wanted: onnx.ModelProto, found: onnx.ModelProto) -> list[Pair]:
    """Choices (masks, indices) of nodes that both graphs have."""
    there = {node.name: node for node in found.graph.node if node.name}
    floats = _floats(wanted)
    return [
        Pair(node=node.name, op=node.op_type, wanted=left, found=right)
        for node in wanted.graph.node
        if node.op_type in DECISIONS and node.name in there and there[node.name].op_type == node.op_type
        for left, right in zip(node.output, there[node.name].output, strict=False)
        if left and right and left not in floats
    ]


def given(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy in which these tensors are inputs instead of being computed; outputs among them are dropped."""
    twin, types = copy_model(model), value_types(model)
    replaced = dict.fromkeys(names)
    kept = [item for item in model.graph.output if item.name not in replaced]
    del twin.graph.output[:]
    twin.graph.output.extend(kept)
    for node in twin.graph.node:
        for i, name in enumerate(node.output):
            if name in replaced:
                node.output[i] = f"{name}.own"
    for name in replaced:
        info = onnx.ValueInfoProto(name=name)
        info.type.tensor_type.CopyFrom(types[name])
        twin.graph.input.append(info)
    return twin


def _floats(model: onnx.ModelProto) -> set[str]:
    return {name for name, tensor in value_types(model).items() if tensor.elem_type in _FLOATS}


def tapped(model: onnx.ModelProto, names: Iterable[str], *, only: bool = False) -> onnx.ModelProto:
    """A copy that gives these tensors as well as its outputs, or these alone.

    Raises:
        ExportError: no such tensor.
    """
    twin = copy_model(model)
    types = value_types(model)
    public = {item.name for item in twin.graph.output}
    missing = [name for name in names if name not in types]
    if missing:
        raise ExportError(f"the graph has no tensor {', '.join(missing)}", expected="names of tensors in the graph")
    if only:
        del twin.graph.output[:]
        public = set()
    for name in dict.fromkeys(names):
        if name not in public:
            info = onnx.ValueInfoProto(name=name)
            info.type.tensor_type.CopyFrom(types[name])
            twin.graph.output.append(info)
    if only:
        drop_dead(twin)
        _drop_unread_inputs(twin)
    return twin


def alone(model: onnx.ModelProto, target: str, known: Collection[str]) -> onnx.ModelProto:
    """The part of a graph that makes `target` from `known` tensors, which become its inputs."""
    makers, types = producers(model), value_types(model)
    nodes: list[onnx.NodeProto] = []
    inputs: list[str] = []
    seen, todo = set[str](), [target]
    while todo:
        maker = makers.get(todo.pop())
        if maker is None or maker.name in seen:
            continue
        seen.add(maker.name)
        nodes.append(maker)
        for name in maker.input:
            if name in known and name != target:
                inputs.append(name)
            elif name in makers:
                todo.append(name)
    twin = copy_model(model)
    del twin.graph.node[:], twin.graph.output[:], twin.graph.value_info[:]
    wanted = {node.name for node in nodes}
    twin.graph.node.extend(node for node in model.graph.node if node.name in wanted)
    public = {item.name for item in twin.graph.input}
    for name in dict.fromkeys((*inputs, target)):
        info = onnx.ValueInfoProto(name=name)
        info.type.tensor_type.CopyFrom(types[name])
        if name == target:
            twin.graph.output.append(info)
        elif name not in public:
            twin.graph.input.append(info)
    drop_dead(twin)
    _drop_unread_inputs(twin)
    return twin


def _drop_unread_inputs(model: onnx.ModelProto) -> None:
    read = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.input if item.name in read]
    copies = []
    for item in kept:
        twin = onnx.ValueInfoProto()
        twin.CopyFrom(item)
        copies.append(twin)
    del model.graph.input[:]
    model.graph.input.extend(copies)


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """All outputs on ONNX Runtime's CPU provider, without its graph optimisations: nothing is fused away.

    Raises:
        UnsupportedError: onnxruntime is not installed.
        ExportError: the graph does not load or run.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UnsupportedError("onnxruntime is not installed", remedy="pip install 'altermoma[cpu]'") from error
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = {item.name: _numpy(item.type) for item in session.get_inputs()}
        fed = {name: np.ascontiguousarray(feeds[name], kind) for name, kind in kinds.items()}
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, session.run(names, fed), strict=True))
    except KeyError as error:
        raise ExportError(f"the graph wants {error}, which was not given") from error
    except Exception as error:  # onnxruntime's exceptions have no public base class
        raise ExportError(f"ONNX Runtime cannot run the graph: {error}", expected="a graph that runs") from error


def _numpy(kind: str) -> str | None:
    return {"tensor(float)": "float32", "tensor(float16)": "float16"}.get(kind)


def chunks(items: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
