"""FP8 (E4M3) instead of int8 between the same pairs, for targets whose tensor cores have it: Hopper, Thor, Blackwell.

The ranges and the places stay; a range now ends at 448, the largest number of E4M3, whose steps grow with the number.
Pairs of FP8 exist from operator set 19 on, which TensorRT reads from 10.0 on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter

from altermoma.calib.int8 import StagePlan
from altermoma.calib.products import Product
from altermoma.calib.scales import LARGEST
from altermoma.errors import ExportError
from altermoma.export.graph import (
    attribute,
    constant_values,
    copy_model,
    drop_dead,
    initializers,
    producers,
    redirect,
    set_initializer,
    set_nodes,
)
from altermoma.export.numbers import beyond_fp8

OPSET = 19
E4M3_MAX = 448.0


def fp8_plan(plan: StagePlan) -> StagePlan:
    """The plan without products that TensorRT has no FP8 kernels for: first layers, narrow heads, depthwise layers."""
    constants = constant_values(plan.graph)

    def checked(item: Product) -> Product:
        if item.kept or not item.weight or not beyond_fp8(item.op, constants[item.weight].shape, item.axis):
            return item
        return dataclasses.replace(item, kept="has no FP8 kernel")

    return dataclasses.replace(plan, products=tuple(map(checked, plan.products)))


def to_fp8(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP8 graph of a signed int8 graph whose weights lie before their quantisers as floats.

    Raises:
        ExportError: weights that are int8 already, which would be rounded twice.
    """
    twin = version_converter.convert_version(model, OPSET)
    twin.metadata_props.extend(model.metadata_props)
    constants = initializers(twin)
    scales: dict[str, str] = {}
    for node in twin.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            raise ExportError(
                f"weights {node.input[0]} are int8 already", expected="float weights before their quantiser"
            )
        scale, zero = node.input[1], node.input[2]
        if scale not in scales:
            value = numpy_helper.to_array(constants[scale]) * np.float32(LARGEST / E4M3_MAX)
            scales[scale] = set_initializer(twin, f"{scale}.fp8", value.astype(np.float32))
            shape = numpy_helper.to_array(constants[zero]).shape
            set_initializer(twin, f"{scale}.fp8_zero", np.zeros(shape, ml_dtypes.float8_e4m3fn))
        node.input[1], node.input[2] = scales[scale], f"{scale}.fp8_zero"
    _fold_weights(twin)
    drop_dead(twin)
    del twin.graph.value_info[:]
    return twin


def _fold_weights(model: onnx.ModelProto) -> None:
    """Quantisers of constants are computed here: the file then holds a byte per weight."""
    constants, makers = initializers(model), producers(model)
    folded = set()
    for node in model.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if maker is not None and maker.input[0] in constants:
            axis = next((item.i for item in maker.attribute if item.name == "axis"), 0)
            value, scale = (numpy_helper.to_array(constants[name]) for name in maker.input[:2])
            set_initializer(model, maker.output[0] + ".stored", rounded_fp8(value, scale, axis))
            redirect(model, maker.output[0], maker.output[0] + ".stored")
            folded.add(maker.name)
    set_nodes(model, [node for node in model.graph.node if node.name not in folded])


def rounded_fp8(values: NDArray[Any], scale: NDArray[Any], axis: int) -> NDArray[Any]:
    """E4M3 numbers of float values; `scale` is one number, or one per index of `axis`. Zeros stay zeros."""
    if scale.ndim:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    scaled = values.astype(np.float32) / scale
    return np.clip(scaled, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)  # type: ignore[no-any-return]


def emulate_fp8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that computes what an FP8 graph does, with every rounding as a cast.

    ONNX Runtime's optimiser takes FP8 pairs for int8 ones (it drops the ReLU before them), so that they are no check.
    """
    twin = copy_model(model)
    constants = constant_values(twin)
    nodes: list[onnx.NodeProto] = []
    for node in twin.graph.node:
        if node.op_type == "QuantizeLinear":
            nodes += _steps(node, ("Div", [node.input[1]]), ("Clip", _limits(twin)), ("Cast", []))
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            set_initializer(twin, node.output[0], _float_weight(node, constants))
        elif node.op_type == "DequantizeLinear":
            nodes += _steps(node, ("Cast", []), ("Mul", [node.input[1]]))
        else:
            nodes.append(node)
    set_nodes(twin, nodes)
    drop_dead(twin)
    del twin.graph.value_info[:]
    return twin


def _limits(model: onnx.ModelProto) -> list[str]:
    return [
        set_initializer(model, f"e4m3.{end}", np.asarray(sign * E4M3_MAX, np.float32))
        for end, sign in (("low", -1), ("high", 1))
    ]


def _float_weight(node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    value, scale = constants[node.input[0]].astype(np.float32), constants[node.input[1]]
    shape = [1] * value.ndim
    if scale.ndim:
        shape[attribute(node, "axis", 1)] = -1
    return np.asarray(value * scale.reshape(shape), np.float32)


def _steps(node: onnx.NodeProto, *steps: tuple[str, list[str]]) -> list[onnx.NodeProto]:
    """A chain of operators from the first input of `node` to its output."""
    made, name = [], node.input[0]
    to = onnx.TensorProto.FLOAT8E4M3FN if node.op_type == "QuantizeLinear" else onnx.TensorProto.FLOAT
    for i, (op, others) in enumerate(steps):
        result = node.output[0] if i == len(steps) - 1 else f"{node.output[0]}.step{i}"
        kind: dict[str, Any] = {"to": to} if op == "Cast" else {}
        made.append(onnx.helper.make_node(op, [name, *others], [result], name=f"{node.name}/{op}", **kind))
        name = result
    return made
