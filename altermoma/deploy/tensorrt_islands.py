"""Whether a built engine kept the fp32 islands of its graph, as far as the engine inspector tells.

The inspector names the tensors that pass between the layers of an engine and their types, on every version from 8.5.
An island tensor is followed from layer to layer up to the nearest convolution or matrix product, as the export does.
What cannot be seen: the type that a kernel accumulates in; what happens inside a fused region of the compiler
(Myelin), of which only the rim shows; and islands amid a stage, away from its inputs and outputs, as fusion renames
their layers. The builder is bound there by the layers' precisions (8.x) or by strong typing (10 and 11) alone.
"""

from __future__ import annotations

import re

from altermoma.deploy.manifest import StageRecord
from altermoma.deploy.tensorrt_inspect import EngineLayer, EngineLayers
from altermoma.deploy.tensorrt_precision import Islands
from altermoma.errors import EngineError

_NARROW = frozenset({"fp16", "bf16", "int8", "fp8"})
_PRODUCT = re.compile(r"conv|gemm|matmul|matrix|einsum|fully", re.IGNORECASE)
_OPAQUE = re.compile(r"myelin|foreignnode|kgen|fusion|fmha", re.IGNORECASE)


def require_islands(stage: StageRecord, islands: Islands, layers: EngineLayers) -> tuple[str, ...]:
    """An engine that rounds an island is an error.

    Args:
        stage: contract; tensors that it hands on in half precision end a walk.
        islands: tensors that the graph computes on in fp32.
        layers: what the inspector told.

    Returns:
        Island tensors that no layer of the report names, which are thus not verified.

    Raises:
        EngineError: names the layers that read, write or pass on an island tensor in less than fp32.
    """
    halves = frozenset(s.name for s in (*stage.inputs, *stage.outputs) if s.dtype == "float16")
    faults: list[str] = []
    unseen: list[str] = []
    for names, forward in ((islands.inputs, True), (islands.outputs, False)):
        for name in sorted(names):
            met = _walk(name, layers, halves, forward=forward)
            faults += [f"{text} (from {name})" for text in met or ()]
            if met is None:
                unseen.append(name)
    if faults:
        raise EngineError(
            f"stage {stage.name}: the engine rounds what its graph computes in fp32:\n  " + "\n  ".join(faults),
            expected="fp32 from each of these tensors to the nearest convolution or matrix product",
            remedy="build the fp32 graphs here, or use TensorRT 10 or newer, where the graph's types are binding",
        )
    return tuple(unseen)


def _walk(name: str, layers: EngineLayers, halves: frozenset[str], *, forward: bool) -> list[str] | None:
    """Faults met from one tensor, None where no layer touches it."""
    todo, seen, faults = [name], {name}, list[str]()
    touched = False
    while todo:
        tensor = todo.pop()
        for layer in layers.layers:
            near, far = (layer.reads, layer.writes) if forward else (layer.writes, layer.reads)
            if tensor not in dict(near):
                continue
            touched = True
            faults += _faults(layer, tensor, halves, forward=forward)
            onward = set() if _ends_at(layer) else {n for n, p in far if p == "fp32"} - seen
            seen |= onward
            todo += sorted(onward)
    return faults if touched else None


def _ends_at(layer: EngineLayer) -> bool:
    return bool(_PRODUCT.search(layer.kind)) or _is_opaque(layer)


def _is_opaque(layer: EngineLayer) -> bool:
    return bool(_OPAQUE.search(layer.kind) or _OPAQUE.search(layer.name.split("...")[0]))


def _faults(layer: EngineLayer, tensor: str, halves: frozenset[str], *, forward: bool) -> list[str]:
    """A product that reads fp32 computes in it, whatever it gives; every other layer hands on what it reads."""
    near, far = (layer.reads, layer.writes) if forward else (layer.writes, layer.reads)
    looked_at = [(tensor, dict(near)[tensor])]
    if not _is_opaque(layer) and not (forward and _PRODUCT.search(layer.kind)):
        looked_at += [(name, precision) for name, precision in far if name not in halves]
    return [
        f"layer {layer.name} ({layer.kind}) has {name} in {precision}"
        for name, precision in looked_at
        if precision in _NARROW
    ]
