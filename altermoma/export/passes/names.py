"""Names that say where a node or weight comes from: the module path of the torch model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import onnx

from altermoma.errors import ExportError
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


class ModulePaths:
    """Finds the module that a traced node belongs to.

    The exporter names nodes by the modules that were called on the way, so that containers which are only looped over
    are missing, and some names repeat their parent's: `/bbox_head/center/center.0/Conv` is a node of
    `bbox_head.prediction_heads.0.center.0`.

    Args:
        names: of all modules, with dots.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._ending: dict[str, list[list[str]]] = {}
        for name in filter(None, names):
            path = name.split(".")
            self._ending.setdefault(path[-1], []).append(path)

    def of_node(self, name: str, elsewhere: str) -> str:
        """`bbox_head/prediction_heads/0/center/0/Conv`; `elsewhere` stands for the path of nodes outside all modules.

        Raises:
            ExportError: two modules fit, or none.
        """
        *called, operator = _path(name).split("/")
        parts = [part for item in called for part in item.split(".")]
        if not parts:
            return f"{elsewhere}/{operator}"
        fitting = [path for path in self._ending.get(parts[-1], []) if _in_order(parts, path)]
        shortest = [path for path in fitting if len(path) == min(map(len, fitting))]
        if len(shortest) != 1:
            found = ", ".join(".".join(path) for path in shortest) or "no module"
            raise ExportError(
                f"the traced node {name} may belong to {found}",
                expected="one module",
                remedy="call the container between them, or give its children other names",
            )
        return "/".join([*shortest[0], operator])


def _in_order(parts: list[str], path: list[str]) -> bool:
    """Whether `path` has all parts, in their order, with others in between."""
    rest = iter(path)
    return all(part in rest for part in parts)


def readable_names(model: onnx.ModelProto, path_of: Callable[[str], str] = str) -> onnx.ModelProto:
    """Gives every node, inner tensor and anonymous weight a unique name by its module path.

    A node at `img_backbone/layer1/0/conv1/Conv` makes `img_backbone/layer1/0/conv1/Conv:0`; a weight of it that has no
    name becomes `img_backbone/layer1/0/conv1/Conv.weight`. Graph inputs and outputs keep the names of the stage
    contract.

    Args:
        model: any graph.
        path_of: gives a node's path and operator for the name that it has.
    """
    model = copy_model(model)
    public = {item.name for item in (*model.graph.input, *model.graph.output)}
    anonymous = {item.name for item in model.graph.initializer if not _is_parameter(item.name)}
    taken = {*public, *(item.name for item in model.graph.initializer)}
    used: set[str] = set()
    renames: dict[str, str] = {}
    for node in model.graph.node:
        node.name = _unique(path_of(node.name or node.op_type), used)
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
