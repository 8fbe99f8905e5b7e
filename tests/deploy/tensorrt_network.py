"""Lets the stand-in parse: an ONNX graph becomes a network of layers and tensors as that version's parser makes it.

On 8.x every intermediate float tensor calls itself FLOAT whatever the graph says, the worst that weak typing can do;
on 10 and 11 types are the graph's. Casts are identities with an output type on 8.5. Products with a bias become two
layers with a nameless tensor between, initialisers become constants, shapes are shape tensors.
"""

from __future__ import annotations

import json
from typing import Any

import onnx
from onnx import TensorProto
from tensorrt_double import TensorRtDouble

from altermoma.deploy.tensorrt_api import version_of

KINDS = {
    "Constant": "CONSTANT",
    "Conv": "CONVOLUTION",
    "Relu": "ACTIVATION",
    "Sigmoid": "ACTIVATION",
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "Reshape": "SHUFFLE",
    "Transpose": "SHUFFLE",
    "Concat": "CONCATENATION",
    "Gather": "GATHER",
    "Shape": "SHAPE",
    "TopK": "TOPK",
    "Identity": "IDENTITY",
    "Slice": "SLICE",
    "ReduceSum": "REDUCE",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
}
TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT32",
    TensorProto.BOOL: "BOOL",
    TensorProto.INT8: "INT8",
}


def onnx_types(model: bytes) -> dict[str, str]:
    """Element type by tensor name, by ONNX's own strict inference."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True).graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    found = {info.name: TYPES[info.type.tensor_type.elem_type] for info in infos}
    return found | {tensor.name: TYPES[tensor.data_type] for tensor in graph.initializer}


def attach_parser(trt: TensorRtDouble) -> list[Any]:
    """Gives the layers that parsing adds; `pinned` of each holds what the code under test set on it."""
    layers: list[Any] = []

    def build(parser: Any, model: bytes) -> bool:
        _Network(trt, layers).fill(parser.network, model)
        return True

    def keep(parser: Any, network: Any, _: Any) -> None:
        object.__setattr__(parser, "network", network)

    def set_type(layer: Any, index: int, dtype: Any) -> None:
        layer.set_types[index] = dtype

    trt.answers |= {
        ("OnnxParser", "__init__"): keep,
        ("OnnxParser", "parse"): build,
        ("INetworkDefinition", "num_inputs"): lambda n: len(getattr(n, "fed", ())),
        ("INetworkDefinition", "get_input"): lambda n, i: n.fed[i],
        ("INetworkDefinition", "num_layers"): lambda n: len(getattr(n, "layers", ())),
        ("INetworkDefinition", "get_layer"): lambda n, i: n.layers[i],
        ("ILayer", "num_inputs"): lambda layer: len(layer.ins),
        ("ILayer", "num_outputs"): lambda layer: len(layer.outs),
        ("ILayer", "get_input"): lambda layer, i: layer.ins[i],
        ("ILayer", "get_output"): lambda layer, i: layer.outs[i],
        ("ILayer", "get_output_type"): lambda layer, i: layer.own or layer.outs[i].dtype,
        ("ILayer", "output_type_is_set"): lambda layer, i: layer.own is not None,
        ("ILayer", "set_output_type"): set_type,
        ("ILayer", "type"): lambda layer: layer.kind,
    }
    return layers


class _Network:
    def __init__(self, trt: TensorRtDouble, layers: list[Any]) -> None:
        self.trt, self.layers = trt, layers
        self.weak = version_of(trt) < (10, 0)
        self.tensors: dict[str, Any] = {}

    def fill(self, network: Any, model: bytes) -> None:
        graph, self.types = onnx.load_from_string(model).graph, onnx_types(model)
        fed = [self.tensor(info.name, self.types[info.name]) for info in graph.input]
        for tensor in graph.initializer:
            self.layer("CONSTANT", tensor.name, [], [self.tensor(tensor.name, self.types[tensor.name])])
        for node in graph.node:
            self.node(node)
        for key, value in {"fed": fed, "layers": self.layers}.items():
            object.__setattr__(network, key, value)

    def node(self, node: onnx.NodeProto) -> None:
        ins = [self.tensors.get(name) for name in node.input]
        public = {name: self.types[name] for name in node.output}
        shown = {n: "FLOAT" if self.weak and t == "HALF" and node.op_type != "Cast" else t for n, t in public.items()}
        outs = [self.tensor(name, kind, shape=node.op_type == "Shape") for name, kind in shown.items()]
        if node.op_type == "Gemm":
            middle = self.tensor(f"(Unnamed Layer* {len(self.layers)}) [Matrix Multiply]_output", outs[0].dtype.name)
            self.layer("MATRIX_MULTIPLY", node.name, ins[:2], [middle])
            self.layer("ELEMENTWISE", f"(Unnamed Layer* {len(self.layers)})", [middle, ins[2]], outs)
        elif node.op_type == "Cast":
            self.cast(node, ins, outs)
        else:
            self.layer(KINDS.get(node.op_type, "ELEMENTWISE"), node.name, ins, outs)

    def cast(self, node: onnx.NodeProto, ins: list[Any], outs: list[Any]) -> None:
        has = hasattr(self.trt.LayerType, "CAST")
        self.layer("CAST" if has else "IDENTITY", node.name, ins, outs, own=outs[0].dtype)

    def tensor(self, name: str, kind: str, *, shape: bool = False) -> Any:
        made = self.trt.make("ITensor")
        dtype = getattr(self.trt.DataType, kind)
        for key, value in {"_name": name, "_dtype": dtype, "_is_shape_tensor": shape}.items():
            object.__setattr__(made, key, value)
        self.tensors[name] = made
        return made

    def layer(self, kind: str, name: str, ins: list[Any], outs: list[Any], *, own: Any = None) -> None:
        made = self.trt.make("ILayer")
        values = {"kind": getattr(self.trt.LayerType, kind), "ins": ins, "outs": outs, "own": own, "set_types": {}}
        for key, value in {"_name": name, **values}.items():
            object.__setattr__(made, key, value)
        self.layers.append(made)


WORDS = {
    "fp32": ("Row major linear FP32", "Float"),
    "fp16": ("Row major linear FP16 format", "Half"),
    "int8": ("Four wide channel vectorized row major Int8 format", "Int8"),
}


def report_of(version: tuple[int, int], *layers: tuple[str, str, str, str]) -> str:
    """Inspector JSON of that version: (kind, name, "a:fp32 b:fp16" read, the same written) per layer."""

    def tensor(text: str) -> dict[str, Any]:
        name, precision = text.rsplit(":", 1)
        old, new = WORDS[precision]
        if version >= (11, 0):
            return {"Name": name, "Format": "Linear", "DataType": new}
        return {"Name": name, "Location": "Device", "Dimensions": [1], "Format/Datatype": old}

    told = [
        {
            "Name": name,
            "LayerType": kind,
            "Inputs": [tensor(t) for t in reads.split()],
            "Outputs": [tensor(t) for t in writes.split()],
        }
        for kind, name, reads, writes in layers
    ]
    return json.dumps({"Layers": told, "I/O Tensors" if version >= (11, 0) else "Bindings": []})
