"""Which layers of a parsed network compute in fp32 and which in fp16, and holding TensorRT 8.x to it.

The graphs state every type themselves: inputs and weights have one, a Cast changes it, every other operator keeps the
type of the data it reads. From 10 on the network is strongly typed and that is the end of it. The networks of 8.x are
weakly typed: the FP16 flag lets the builder narrow any layer, OBEY_PRECISION_CONSTRAINTS binds it only where a layer
has a precision of its own. So the types are traced through the network and written onto its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from altermoma.deploy.manifest import StageRecord
from altermoma.deploy.tensorrt_api import member, required
from altermoma.errors import EngineError

Float = Literal["FLOAT", "HALF"]
_FLOATS: tuple[Float, ...] = ("FLOAT", "HALF")
_NUMPY: dict[Float, str] = {"FLOAT": "float32", "HALF": "float16"}
_SELF_TYPED = ("CONSTANT", "SHAPE", "CAST", "QUANTIZE", "DEQUANTIZE", "FILL", "ASSERTION")
"""Layers whose output type is their own; a precision on them means nothing or contradicts it."""


@dataclass(frozen=True, kw_only=True)
class TracedLayer:
    """One layer of a parsed network.

    Attributes:
        layer: TensorRT's own.
        computes: type of the float data it reads; None for layers that take or give none, and for `self_typed` ones.
        reads, writes: tensor names with their float type, None for integers and masks.
        casts: whether it changes the type of its data.
        quantises, dequantises: whether it is one half of a Q/DQ pair.
    """

    layer: Any
    computes: Float | None
    reads: tuple[tuple[str, Float | None], ...]
    writes: tuple[tuple[str, Float | None], ...]
    casts: bool
    quantises: bool = False
    dequantises: bool = False


@dataclass(frozen=True, kw_only=True)
class Islands:
    """Names of a stage's float32 inputs and outputs that its graph computes on in fp32, without a cast in between."""

    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()


def trace_network(trt: Any, network: Any) -> tuple[TracedLayer, ...]:
    """Layers in order with the float types that the graph gives them.

    Types are traced and not asked for: before the build, 8.x may call an intermediate tensor FLOAT that the graph
    computes in half precision. Whether a tensor holds floats at all is asked for.
    """
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    types: dict[str, Float | None] = {tensor.name: _float(trt, tensor.dtype) for tensor in inputs}
    constants: set[str] = set()
    return tuple(_trace(trt, network.get_layer(i), types, constants) for i in range(network.num_layers))


def _trace(trt: Any, layer: Any, types: dict[str, Float | None], constants: set[str]) -> TracedLayer:
    given = [layer.get_input(i) for i in range(layer.num_inputs)]
    fed = [tensor for tensor in given if tensor is not None]
    made = [layer.get_output(i) for i in range(layer.num_outputs)]
    reads = tuple((t.name, types.get(t.name, _float(trt, t.dtype))) for t in fed)
    casts = _casts(trt, layer)
    own = casts or layer.type in {member(trt.LayerType, name) for name in _SELF_TYPED}
    data = _data_type(reads, constants)
    writes: list[tuple[str, Float | None]] = []
    for i, tensor in enumerate(made):
        kind = _float(trt, layer.get_output_type(i) if own else tensor.dtype)
        writes.append((tensor.name, kind if own or kind is None or data is None else data))
    types.update(writes)
    if layer.type == trt.LayerType.CONSTANT:
        constants.update(name for name, _ in writes)
    fixed = own or any(tensor.is_shape_tensor for tensor in made)
    return TracedLayer(
        layer=layer,
        computes=None if fixed else data,
        reads=reads,
        writes=tuple(writes),
        casts=casts,
        quantises=layer.type == member(trt.LayerType, "QUANTIZE"),
        dequantises=layer.type == member(trt.LayerType, "DEQUANTIZE"),
    )


def _casts(trt: Any, layer: Any) -> bool:
    """Up to 8.5 a cast is an identity whose output type was set."""
    if layer.type == member(trt.LayerType, "CAST"):
        return True
    asked = member(layer, "output_type_is_set")
    return layer.type == trt.LayerType.IDENTITY and asked is not None and bool(asked(0))


def _data_type(reads: Sequence[tuple[str, Float | None]], constants: set[str]) -> Float | None:
    """The wider one of several, as nothing must be narrowed; weights speak only where there is nothing else."""
    found = {kind for name, kind in reads if name not in constants} - {None}
    found = found or {kind for _, kind in reads} - {None}
    return None if not found else "FLOAT" if "FLOAT" in found else "HALF"


def _float(trt: Any, dtype: Any) -> Float | None:
    return next((name for name in _FLOATS if member(trt.DataType, name) == dtype), None)


def held_precision(layers: Sequence[TracedLayer], asked: str) -> str:
    """What a stage of an int8 bundle computes in: some hold nothing to quantise, and are fp16 or fp32 throughout."""
    if asked != "int8" or not layers or any(item.quantises or item.dequantises for item in layers):
        return asked
    return "fp16" if any(item.computes == "HALF" for item in layers) else "fp32"


def pin_precisions(trt: Any, layers: Sequence[TracedLayer], stage: StageRecord) -> int:
    """Gives every float layer of a weakly typed network (8.x) the precision and the output types that its graph states.

    Layers next to Q/DQ pairs, and sums and activations between a product and the next pair, stay free: a precision of
    their own would keep them from being quantised or fused into what is.

    Returns:
        How many layers were given one.

    Raises:
        EngineError: the traced types do not end in those of the stage's contract, so that they cannot be trusted.
    """
    ends = {name: kind for layer in layers for name, kind in layer.writes if kind is not None}
    for spec in stage.outputs:
        if spec.name in ends and _NUMPY[ends[spec.name]] != spec.dtype:
            raise EngineError(
                f"stage {stage.name}: TensorRT {trt.__version__} computes {spec.name} in {_NUMPY[ends[spec.name]]} "
                "as far as its network tells",
                expected=f"{spec.dtype}, as the contract says",
                remedy="build the fp32 graphs, or use TensorRT 10 or newer, where the graph's types are binding",
            )
    remedy = "use a TensorRT 8.5, 8.6 or 10"
    required(trt.ILayer, "precision", trt, remedy)
    required(trt.ILayer, "set_output_type", trt, remedy)
    paired = {name for item in layers if item.dequantises for name, _ in item.writes}
    paired |= {name for item in layers if item.quantises for name, _ in item.reads}
    free = _fused(trt, layers, paired, {spec.name for spec in stage.outputs})
    pinned = [item for i, item in enumerate(layers) if item.computes is not None and i not in free]
    for item in pinned:
        item.layer.precision = member(trt.DataType, str(item.computes))
        for i, (_, kind) in enumerate(item.writes):
            if kind is not None:
                item.layer.set_output_type(i, member(trt.DataType, kind))
    return len(pinned)


def _fused(trt: Any, layers: Sequence[TracedLayer], paired: set[str], public: set[str]) -> set[int]:
    """Places of layers next to a pair, and of those that lie wholly between such layers and the next pair.

    The rule by which an int8 graph keeps the type float32 there.
    """
    kinds = {trt.LayerType.CONCATENATION, trt.LayerType.ELEMENTWISE, trt.LayerType.ACTIVATION}
    ends = {i for i, item in enumerate(layers) if _touches(item, paired)}
    inside, known = set(ends), set(paired)
    constants: set[str] = set()
    for i, item in enumerate(layers):
        reads, writes = {name for name, _ in item.reads}, {name for name, _ in item.writes}
        if reads <= constants:
            constants |= writes
        elif item.layer.type in kinds and reads <= known | constants:
            inside.add(i)
        if i in inside:
            known |= writes
    for i in sorted(inside - ends, reverse=True):
        writes = {name for name, _ in layers[i].writes}
        readers = {j for j, item in enumerate(layers) if writes & {name for name, _ in item.reads}}
        if not readers or not readers <= inside or writes & public:
            inside.discard(i)
    return inside


def _touches(item: TracedLayer, names: set[str]) -> bool:
    return any(name in names for name, _ in (*item.reads, *item.writes))


def find_islands(layers: Sequence[TracedLayer], stage: StageRecord) -> Islands:
    """The public float32 tensors that an engine of this graph must read and write in fp32.

    A float32 input that the graph casts to half precision or quantises at once (pictures) is none: rounding it is what
    was asked.
    """
    readers = {spec.name: [i for i in layers if spec.name in dict(i.reads)] for spec in stage.inputs}
    makers = {name: item for item in layers for name, _ in item.writes}
    inputs = {
        spec.name
        for spec in stage.inputs
        if spec.dtype == "float32" and readers[spec.name] and not any(_narrows(i) for i in readers[spec.name])
    }
    outputs = {
        spec.name
        for spec in stage.outputs
        if spec.dtype == "float32" and spec.name in makers and not _widens(makers[spec.name])
    }
    return Islands(inputs=frozenset(inputs), outputs=frozenset(outputs))


def _narrows(item: TracedLayer) -> bool:
    return item.quantises or (item.casts and any(kind == "HALF" for _, kind in item.writes))


def _widens(item: TracedLayer) -> bool:
    return item.dequantises or (item.casts and any(kind == "HALF" for _, kind in item.reads))
