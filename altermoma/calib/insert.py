"""Writes quantise-dequantise pairs into a graph, as a plan says and in the dialect of one runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.calib.placement import Placement
from altermoma.calib.products import Product
from altermoma.calib.scales import (
    Range,
    Scale,
    rounded,
    rounded_bias,
    rounded_weight,
    signed_scale,
    unsigned_scale,
    weight_scales,
)
from altermoma.errors import ExportError
from altermoma.export.graph import constant_values, consumers, copy_model, drop_dead, set_initializer, set_nodes


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one runtime wants its pairs.

    Attributes:
        signed: int8 activations with zero point 0; else uint8 over the tensor's own range.
        stored: weights lie in the file as int8, else as float32 behind a quantiser, which TensorRT before 10 wants.
        results: products leave int8 and add int32 biases; see `placement.place`.
    """

    signed: bool
    stored: bool
    results: bool


ONNX_RUNTIME = Dialect(signed=False, stored=True, results=True)


def tensorrt_dialect(version: tuple[int, int]) -> Dialect:
    """Parsers before 10 do not read int8 initialisers everywhere; they fold a quantiser on weights themselves."""
    return Dialect(signed=True, stored=version >= (10, 0), results=False)


def insert(
    model: onnx.ModelProto,
    products: Iterable[Product],
    placement: Placement,
    ranges: Mapping[str, Range],
    dialect: Dialect,
) -> onnx.ModelProto:
    """The graph with its pairs; `model` is left alone.

    Raises:
        ExportError: a tensor of the plan has no range.
    """
    return _Inserter(copy_model(model), placement, ranges, dialect).run(
        [product for product in products if product.node in placement.products]
    )


class _Inserter:
    def __init__(
        self, model: onnx.ModelProto, placement: Placement, ranges: Mapping[str, Range], dialect: Dialect
    ) -> None:
        self.model = model
        self.placement = placement
        self.dialect = dialect
        self.constants = constant_values(model)
        self.public = {item.name for item in model.graph.output}
        self.scales = {key: self._scale(key, names, ranges) for key, names in placement.sources.items()}
        self.behind: dict[str, list[onnx.NodeProto]] = {}
        self.first: list[onnx.NodeProto] = []
        self.weights: dict[str, str] = {}
        self.readers = consumers(model)

    def _scale(self, key: str, names: tuple[str, ...], ranges: Mapping[str, Range]) -> Scale:
        missing = [name for name in names if name not in ranges]
        if missing:
            raise ExportError(
                f"no range for {', '.join(missing[:3])}",
                expected="a range of every tensor that is rounded",
                remedy="calibrate again: the range file is of another graph",
            )
        found = ranges[names[0]]
        for name in names[1:]:
            found = found.united(ranges[name])
        return signed_scale(found) if self.dialect.signed else unsigned_scale(found)

    def run(self, products: list[Product]) -> onnx.ModelProto:
        nodes = {node.name: node for node in self.model.graph.node}
        for tensor in self.placement.points:
            self._pair(tensor, nodes)
        for (tensor, reader), key in self.placement.constants.items():
            self._constant(tensor, nodes[reader], key)
        for product in [item for item in products if item.weight]:
            self._weight(product, nodes[product.node])
        ordered = list(self.first)
        for node in self.model.graph.node:
            ordered.append(node)
            for name in node.output:
                ordered += self.behind.get(name, [])
        set_nodes(self.model, ordered)
        drop_dead(self.model)
        del self.model.graph.value_info[:]
        return self.model

    def _scale_names(self, key: str) -> tuple[str, str]:
        scale = self.scales[key]
        return (
            set_initializer(self.model, f"{key}.scale", np.asarray(scale.scale)),
            set_initializer(self.model, f"{key}.zero_point", np.asarray(scale.zero_point)),
        )

    def _pair(self, tensor: str, nodes: Mapping[str, onnx.NodeProto]) -> None:
        key = self.placement.points[tensor]
        names = self._scale_names(key)
        stem = tensor.replace(":", "/")
        result = f"{tensor}.dequantised"
        for reader in self.placement.readers.get(tensor, ()):
            node = nodes[reader]
            for i, name in enumerate(node.input):
                if name == tensor:
                    node.input[i] = result
        whole, source = f"{tensor}.int8", tensor
        if tensor in self.public and self.dialect.results:
            # An output of the graph comes from the pair, so that the kernel before it leaves int8 alone.
            source, result = f"{tensor}.float", tensor
            self._rename(tensor, source, result)
        pair = [
            onnx.helper.make_node("QuantizeLinear", [source, *names], [whole], name=f"{stem}/quantise"),
            _dequantise([whole, *names], result, stem),
        ]
        if tensor in {item.name for item in self.model.graph.input}:
            self.first += pair
        else:
            self.behind[source] = pair

    def _constant(self, tensor: str, reader: onnx.NodeProto, key: str) -> None:
        """A constant beside computed tensors (the row of zeros that empty neighbours point to) takes their scale."""
        if key not in self.scales:
            return
        stem = f"{reader.name}/{tensor}"
        names, whole = self._scale_names(key), f"{stem}.int8"
        if self.dialect.stored:
            set_initializer(self.model, whole, rounded(self.constants[tensor], self.scales[key]))
        else:
            self.first.append(
                onnx.helper.make_node("QuantizeLinear", [tensor, *names], [whole], name=f"{stem}/quantise")
            )
        self.first.append(_dequantise([whole, *names], f"{stem}.dequantised", stem))
        for i, name in enumerate(reader.input):
            if name == tensor:
                reader.input[i] = f"{stem}.dequantised"

    def _rename(self, tensor: str, source: str, result: str) -> None:
        """Lets the node that makes `tensor` make `source`; whoever read it reads `result`."""
        for node in self.model.graph.node:
            for i, name in enumerate(node.output):
                node.output[i] = source if name == tensor else name
            for i, name in enumerate(node.input):
                node.input[i] = result if name in (tensor, f"{tensor}.dequantised") else name

    def _weight(self, product: Product, node: onnx.NodeProto) -> None:
        weight = self.constants[product.weight]
        scales = weight_scales(weight, product.axis)
        if product.weight not in self.weights:
            self.weights[product.weight] = self._stored_weight(product, weight, scales)
        node.input[1] = self.weights[product.weight]
        if not self.dialect.results:
            return
        if product.bias in self.constants:
            node.input[2] = self._stored_bias(product, product.bias, scales)
        elif product.op == "MatMul":
            self._bias_behind(product, scales)

    def _bias_behind(self, product: Product, scales: NDArray[np.float32]) -> None:
        """ONNX Runtime makes one product of a MatMul and the bias that is added to it: in int8 if the bias is int32."""
        readers = self.readers.get(product.result, [])
        if len(readers) != 1 or readers[0].op_type != "Add" or product.result in (self.public | self.behind.keys()):
            return
        for i, name in enumerate(readers[0].input):
            if name in self.constants and self.constants[name].shape == scales.shape:
                readers[0].input[i] = self._stored_bias(product, name, scales)

    def _stored_weight(self, product: Product, weight: NDArray[Any], scales: NDArray[np.float32]) -> str:
        name = product.weight
        numbers = [
            set_initializer(self.model, f"{name}.scale", scales),
            set_initializer(self.model, f"{name}.zero_point", np.zeros(len(scales), np.int8)),
        ]
        stem, whole = f"{product.node}/weight", f"{name}.int8"
        if self.dialect.stored:
            set_initializer(self.model, whole, rounded_weight(weight, scales, product.axis))
        else:
            self.first.append(
                onnx.helper.make_node(
                    "QuantizeLinear", [name, *numbers], [whole], name=f"{stem}/quantise", axis=product.axis
                )
            )
        self.first.append(_dequantise([whole, *numbers], f"{name}.dequantised", stem, axis=product.axis))
        return f"{name}.dequantised"

    def _stored_bias(self, product: Product, bias: str, scales: NDArray[np.float32]) -> str:
        data = self.scales[self.placement.points[product.data]].scale
        name = f"{product.node}/bias"
        numbers = [
            set_initializer(self.model, f"{name}.int32", rounded_bias(self.constants[bias], data, scales)),
            set_initializer(self.model, f"{name}.scale", (data * scales).astype(np.float32)),
            set_initializer(self.model, f"{name}.zero_point", np.zeros(len(scales), np.int32)),
        ]
        self.first.append(_dequantise(numbers, f"{name}.dequantised", name, axis=0))
        return f"{name}.dequantised"


def _dequantise(inputs: list[str], result: str, stem: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node("DequantizeLinear", inputs, [result], name=f"{stem}/dequantise", **attributes)
