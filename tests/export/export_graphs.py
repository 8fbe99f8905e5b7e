"""Small ONNX graphs written by hand, and a runner for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arrays = dict[str, NDArray[Any]]
KINDS = {"f": TensorProto.FLOAT, "h": TensorProto.FLOAT16, "i": TensorProto.INT32, "l": TensorProto.INT64,
         "d": TensorProto.DOUBLE, "b": TensorProto.BOOL}  # fmt: skip


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[str, list[int | str]]],
    outputs: dict[str, tuple[str, list[int | str] | None]],
    weights: Arrays | None = None,
    opset: int = 17,
    domain: str = "",
) -> onnx.ModelProto:
    """A model; inputs and outputs are name -> (kind letter, shape)."""
    for i, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{i}"
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, KINDS[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, KINDS[kind], shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(made, opset_imports=imports, ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for plain, known in zip(model.graph.output, inferred.graph.output, strict=True):
        plain.CopyFrom(known)
    return model


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Inputs and outputs are separated by spaces; `-` stands for one left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def run(model: onnx.ModelProto, feeds: Arrays) -> list[NDArray[Any]]:
    """Runs a graph in the reference implementation of ONNX, which shares no code with the runtimes."""
    from onnx.reference import ReferenceEvaluator

    found: list[NDArray[Any]] = ReferenceEvaluator(model).run(None, feeds)  # type: ignore[assignment]
    return found


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
