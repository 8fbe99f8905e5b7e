"""Where quantisers sit: a plan of points and shared scales, made without touching the graph.

A quantised product reads int8 numbers. From its data input the plan walks back over everything that only moves numbers
(reshapes, concatenations, gathers, pooling by maximum) to where they are computed: there they are rounded, once, and
all tensors on the way share one scale, so that rearranging int8 numbers is exact. That is how the rows of the sparse
encoder are int8 before they are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

import onnx

from altermoma.calib.products import PASSIVE, Product
from altermoma.export.graph import attribute, consumers, initializers, producers

MOVING = PASSIVE | {"Concat", "Gather", "MaxPool", "Resize"}
"""Operators whose numbers are numbers of their inputs, or between them: the inputs' scale suits them."""

_JOINTS = frozenset({"Concat", "Resize"})
"""Moving operators that runtimes compute in int8 only between pairs of their own."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A plan for one graph.

    Attributes:
        products: names of the nodes that compute in int8.
        points: tensor -> key of its scale. Each gets one quantise-dequantise pair.
        sources: key of a scale -> the computed tensors whose ranges decide it; constants on the way are not listed.
        readers: tensor -> names of the nodes that read it dequantised; all others read it as it is.
        constants: (constant, node that joins it to computed tensors) -> key of their scale, which it is rounded by.
    """

    products: frozenset[str]
    points: Mapping[str, str]
    sources: Mapping[str, tuple[str, ...]]
    readers: Mapping[str, frozenset[str]]
    constants: Mapping[tuple[str, str], str]


def place(model: onnx.ModelProto, products: Iterable[Product], *, results: bool) -> Placement:
    """Plans the quantisers for these products of a prepared graph.

    Args:
        model: see `segments.prepare`.
        products: that shall compute in int8.
        results: quantise what products compute, too: ONNX Runtime has no int8 convolution and no product with ReLU
            that have a float result, and no int8 addition with a float operand. TensorRT wants these left alone, so
            that it fuses bias, shortcut and ReLU into the convolution.
    """
    return _Planner(model, list(products), results).plan()


class _Planner:
    def __init__(self, model: onnx.ModelProto, products: list[Product], results: bool) -> None:
        self.model = model
        self.products = products
        self.results = results
        self.makers, self.all_readers = producers(model), consumers(model)
        self.constants = initializers(model)
        self.public = {item.name for item in model.graph.output}
        self.chosen = {product.node for product in products}
        self.parent: dict[str, str] = {}
        self.points: set[str] = set()
        self.sources: set[str] = set()
        self.readers: dict[str, set[str]] = {}
        self.walked: set[tuple[str, str]] = set()
        self.joined: dict[tuple[str, str], str] = {}

    def plan(self) -> Placement:
        for product in self.products:
            self._follow(product.data, product.node)
        for product in self.products:
            self._absorb(product)
        points = {name: self._root(name) for name in sorted(self.points)}
        groups: dict[str, list[str]] = {}
        for name in sorted(self.sources):
            groups.setdefault(self._root(name), []).append(name)
        return Placement(
            products=frozenset(self.chosen),
            points=points,
            sources={key: tuple(names) for key, names in groups.items()},
            readers={name: frozenset(nodes) for name, nodes in self.readers.items() if name in self.points},
            constants={pair: self._root(name) for pair, name in self.joined.items()},
        )

    def _root(self, name: str) -> str:
        while self.parent.setdefault(name, name) != name:
            name = self.parent[name]
        return name

    def _join(self, left: str, right: str) -> None:
        a, b = sorted((self._root(left), self._root(right)))
        self.parent[b] = a

    def _point(self, name: str, reader: str) -> None:
        self._root(name)
        self.points.add(name)
        self.readers.setdefault(name, set()).add(reader)

    def _follow(self, name: str, reader: str) -> None:
        """Places a pair before `reader` and walks back from there to where the numbers are computed."""
        self._point(name, reader)
        node = self.makers.get(name)
        if node is None or node.op_type not in MOVING:
            self.sources.add(name)
            return
        joint = node.op_type in _JOINTS
        if self._rescales(node):
            self.sources.add(name)
        for inner in _moved(node):
            if inner in self.constants:
                self.joined[inner, node.name] = name
                continue
            if not self._rescales(node):
                self._join(name, inner)
            if (inner, node.name) not in self.walked:
                self.walked.add((inner, node.name))
                self._pass(inner, node.name, joint)

    def _pass(self, name: str, reader: str, joint: bool) -> None:
        """As `_follow`, for a reader that only moves numbers: it needs a pair behind a source or a joint alone."""
        node = self.makers.get(name)
        if joint or node is None or node.op_type not in MOVING or node.op_type in _JOINTS:
            self._follow(name, reader)
            return
        for inner in _moved(node):
            self._join(name, inner)
            if (inner, node.name) not in self.walked:
                self.walked.add((inner, node.name))
                self._pass(inner, node.name, False)

    def _rescales(self, node: onnx.NodeProto) -> bool:
        """Whether inputs keep scales of their own: ONNX Runtime rescales channels as it joins them.

        It must be so: a ReLU disappears into a kernel only where zero is the smallest number of its result's scale.
        """
        return self.results and node.op_type == "Concat" and attribute(node, "axis") != 0

    def _absorb(self, product: Product) -> None:
        """What comes behind a product: its ReLU, and the addition of a shortcut."""
        end = self._end_of(product.result)
        addition = self._only(end, "Add") or self._addition_behind_joint(end)
        if addition is not None and self._is_residual(addition):
            self._add_shortcut(addition)
        elif self.results and product.weight and end not in self.points:
            self._source(end)
        if end in self.points:
            # The kernel writes int8: whoever reads it reads int8.
            self.readers.setdefault(end, set()).update(node.name for node in self.all_readers.get(end, []))

    def _end_of(self, name: str) -> str:
        """What comes behind a product's own bias and ReLU.

        A bias with several readers behind it stays in float: ONNX Runtime gives each reader a dequantiser of its own,
        and knows no GELU then; of a bias behind a pair and the GELU it makes one kernel.
        """
        bias = self._only(name, "Add")
        if bias is not None and len(self.all_readers.get(bias.output[0], [])) == 1 and self._adds_vector(bias):
            name = bias.output[0]
        relu = self._only(name, "Relu")
        return relu.output[0] if relu is not None else name

    def _adds_vector(self, add: onnx.NodeProto) -> bool:
        return any(len(self.constants[part].dims) == 1 for part in add.input if part in self.constants)

    def _only(self, name: str, op: str) -> onnx.NodeProto | None:
        """The one reader of a tensor, where it is of this kind."""
        readers = self.all_readers.get(name, [])
        alone = len(readers) == 1 and name not in self.public
        return readers[0] if alone and readers[0].op_type == op else None

    def _addition_behind_joint(self, name: str) -> onnx.NodeProto | None:
        """The addition that follows where segments of rows are joined."""
        joint = self._only(name, "Concat")
        return self._only(joint.output[0], "Add") if joint is not None else None

    def _is_residual(self, add: onnx.NodeProto) -> bool:
        """Whether two computed tensors are added and the sum is rounded at once."""
        computed = [name for name in add.input if name not in self.constants]
        return len(computed) == 2 and self._end_of(add.output[0]) in self.points

    def _add_shortcut(self, add: onnx.NodeProto) -> None:
        """The shortcut is read as int8. Of two products the earlier is the shortcut; the other takes the sum."""
        fresh = [name for name in add.input if name not in self.points]
        for name in add.input:
            if name in self.points:
                self._point(name, add.name)
        if not self.results:
            fresh = [name for name in fresh if len(fresh) == 2 and name != self._later(fresh)]
        for name in fresh:
            self._follow(name, add.name)

    def _source(self, name: str) -> None:
        self._root(name)
        self.sources.add(name)
        self.points.add(name)

    def _later(self, names: list[str]) -> str:
        order = {output: i for i, node in enumerate(self.model.graph.node) for output in node.output}
        return max(names, key=lambda name: order.get(name, -1))


def _moved(node: onnx.NodeProto) -> Iterator[str]:
    """The inputs of a moving operator that hold the numbers."""
    yield from node.input if node.op_type == "Concat" else node.input[:1]


def needed(placements: Iterable[Placement]) -> Set[str]:
    """Tensors whose ranges these plans need."""
    return {name for placement in placements for names in placement.sources.values() for name in names}
