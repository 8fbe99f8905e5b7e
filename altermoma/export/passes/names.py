"""Names that say where a node or weight comes from: the module path of the torch model."""

from __future__ import annotations

import re

import onnx

from altermoma.export.graph import copy_model

_ROLES = {
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "MatMul": ("left", "weight"),
    "Add": ("bias", "bias"),
    "LayerNormalization": ("", "weight", "bias"),
    "Gather": ("data", "indices"),
    "Reshape": ("data", "shape"),
}


def readable_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives every node, inner tensor and anonymous weight a unique name by its module path.

    `/img_backbone/layer1/layer1.0/conv1/Conv` becomes `img_backbone/layer1/0/conv1/Conv`, its result
    `img_backbone/layer1/0/conv1/Conv:0`, an anonymous weight `img_backbone/layer1/0/conv1/Conv.weight`.
    Graph inputs and outputs keep the names of the stage contract.
    """
    model = copy_model(model)
    public = {item.name for item in (*model.graph.input, *model.graph.output)}
    anonymous = {item.name for item in model.graph.initializer if not _is_parameter(item.name)}
    taken = {*public, *(item.name for item in model.graph.initializer)}
    used: set[str] = set()
    renames: dict[str, str] = {}
    for node in model.graph.node:
        node.name = _unique(_path(node.name) or node.op_type, used)
        for i, name in enumerate(node.output):
            if name and name not in public:
                renames[name] = _unique(f"{node.name}:{i}", taken)
        for i, name in enumerate(node.input):
            if name in anonymous and name not in renames:
                renames[name] = _unique(f"{node.name}.{_role(node.op_type, i)}", taken)
    _rename_all(model, renames)
    return model


def _rename_all(model: onnx.ModelProto, renames: dict[str, str]) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = renames.get(name, name)
    for item in model.graph.initializer:
        item.name = renames.get(item.name, item.name)
    del model.graph.value_info[:]


def _is_parameter(name: str) -> bool:
    """Whether torch named it by its module (`a.b.weight`) rather than by a counter (`onnx::Conv_12`)."""
    return "::" not in name and not name.startswith("/") and "." in name


def _path(name: str) -> str:
    """Module path without the repeats that nested containers leave: `layer1/layer1.0` -> `layer1/0`."""
    parts: list[str] = []
    for part in name.strip("/").split("/"):
        head, dot, tail = part.rpartition(".")
        parts.append(tail if dot and parts and head.split(".")[-1] == parts[-1].split(".")[-1] else part)
    return "/".join(parts)


def _role(op_type: str, index: int) -> str:
    roles = _ROLES.get(op_type, ())
    return roles[index] if index < len(roles) and roles[index] else f"input{index}"


def _unique(name: str, used: set[str]) -> str:
    stem = re.sub(r"_\d+$", "", name)
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{stem}_{count}"
    used.add(candidate)
    return candidate
