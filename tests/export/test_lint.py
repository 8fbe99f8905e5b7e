"""Graphs that are known to break on a TensorRT version, and graphs that do not."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from export_frames import exported
from export_graphs import Arrays, graph, node, random

from altermoma.errors import ExportError, RecipeError
from altermoma.export.lint import lint, raise_on_errors
from altermoma.export.lint_tables import max_opset, parse_version, supported_operators

VERSIONS = ("8.5.2", "8.6.1", "9.3", "10.0.1", "10.3.0", "10.9", "10.13.3", "10.16.2", "11.0", "11.1", "11.4.1")
Shapes = dict[str, tuple[str, list[int | str]]]


def ints(*values: int, kind: type = np.int64) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(values, kind)


def one(
    op: str, shapes: Shapes, weights: Arrays | None = None, opset: int = 17, **attributes: object
) -> onnx.ModelProto:
    """A graph of one node that reads all `shapes`, then all `weights`."""
    names = " ".join([*shapes, *(weights or {})])
    return graph([node(op, names, "out", **attributes)], shapes, {"out": ("f", None)}, weights, opset)


def sampling(mode: str, opset: int) -> onnx.ModelProto:
    return one("GridSample", {"x": ("f", [1, 2, 5, 5]), "g": ("f", [1, 3, 3, 2])}, opset=opset, mode=mode)


def scatter(op: str, reduction: str | None) -> onnx.ModelProto:
    index = [3, 1] if op == "ScatterND" else [3]
    attributes = {} if reduction is None else {"reduction": reduction}
    return one(op, {"x": ("f", [9]), "i": ("l", index), "u": ("f", [3])}, **attributes)  # type: ignore[arg-type]


def top_k(count: int, kind: str = "f", **attributes: int) -> onnx.ModelProto:
    nodes = [node("TopK", "x k", "values indices", **attributes)]
    outputs = {"values": (kind, None)}
    return graph(nodes, {"x": (kind, [1, 9000])}, outputs, {"k": ints(count)})  # type: ignore[arg-type]


def quantised(zero: np.ndarray | None, scale: float = 0.1) -> onnx.ModelProto:  # type: ignore[type-arg]
    weights: Arrays = {"s": np.asarray(scale, np.float32)} | ({} if zero is None else {"z": zero})
    names = "x s z" if zero is not None else "x s"
    back = "q s z" if zero is not None else "q s"
    nodes = [node("QuantizeLinear", names, "q"), node("DequantizeLinear", back, "out")]
    return graph(nodes, {"x": ("f", [4])}, {"out": ("f", None)}, weights)


def int8_rows() -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("Gather", "q i", "rows"),
        node("DequantizeLinear", "rows s z", "out"),
    ]
    weights = {"s": np.asarray(0.1, np.float32), "z": np.asarray(0, np.int8)}
    return graph(nodes, {"x": ("f", [4, 2]), "i": ("i", [3])}, {"out": ("f", None)}, weights)


def int8_table() -> onnx.ModelProto:
    nodes = [node("Gather", "table i", "rows"), node("DequantizeLinear", "rows s z", "out")]
    weights = {"table": np.ones((4, 2), np.int8), "s": np.asarray(0.1, np.float32), "z": np.asarray(0, np.int8)}
    return graph(nodes, {"i": ("i", [3])}, {"out": ("f", None)}, weights)


def stored(kind: str, axis: int | None = 0) -> onnx.ModelProto:
    """Weights [8, 4] with a scale per row: stored in int8, or as floats behind a quantiser."""
    axes = {} if axis is None else {"axis": axis}
    back = node("DequantizeLinear", "q s z", "w", **axes)
    nodes = [back] if kind == "int8" else [node("QuantizeLinear", "w0 s z", "q", **axes), back]
    weights: Arrays = {"s": np.ones(8, np.float32), "z": np.zeros(8, np.int8)}
    weights |= {"q": np.ones((8, 4), np.int8)} if kind == "int8" else {"w0": random(8, 4)}
    nodes.append(node("MatMul", "w x", "out"))
    return graph(nodes, {"x": ("f", [4, 3])}, {"out": ("f", None)}, weights)


MEAN_18 = one("ReduceMean", {"x": ("f", [2, 3])}, {"axes": ints(1)}, opset=18)
X4: Shapes = {"x": ("f", [1, 2, 8, 8])}

CASES = [
    # graph, rule, versions that break; every other version of VERSIONS must not report the rule
    (sampling("linear", 20), "grid-sample-mode", ("8.5.2", "9.3", "10.3.0", "10.13.3", "11.0", "11.1")),
    (sampling("bilinear", 16), "grid-sample-mode", ()),
    (scatter("ScatterND", "add"), "scatter-reduction", VERSIONS),
    (scatter("ScatterElements", "add"), "scatter-reduction", ("8.5.2", "8.6.1", "9.3")),
    (scatter("ScatterElements", "add"), "scatter-plugin", VERSIONS[3:]),
    (scatter("ScatterND", "none"), "scatter-attribute", ("10.0.1", "10.3.0")),
    (scatter("ScatterND", None), "scatter-attribute", ()),
    (MEAN_18, "reduce-axes", ("8.5.2", "8.6.1", "9.3")),
    (one("ReduceSum", {"x": ("f", [2, 3])}, {"axes": ints(1)}), "reduce-axes", ()),
    (one("ReduceSum", {"x": ("f", [2, 3]), "axes": ("l", [1])}), "reduce-axes", VERSIONS),
    (MEAN_18, "opset-too-new", ("8.5.2", "8.6.1")),
    (sampling("bilinear", 20), "opset-too-new", ("8.5.2", "8.6.1", "9.3")),
    (top_k(3840), "topk-count", VERSIONS[3:]),
    (top_k(3841), "topk-count", VERSIONS),
    (top_k(100), "topk-count", ()),
    (top_k(5, sorted=0), "topk-sorted", VERSIONS[3:]),
    (top_k(5, "i"), "topk-int", ("8.5.2", "8.6.1", "9.3")),
    (one("NonZero", {"x": ("f", [9])}), "irregular", VERSIONS),
    (one("Unique", {"x": ("f", [9])}), "irregular", VERSIONS),
    (one("LayerNormalization", {"x": ("f", [2, 3])}, {"w": random(3)}), "unsupported-operator", ("8.5.2",)),
    (one("Relu", {"x": ("f", [2, 3])}), "unsupported-operator", ()),
    (one("BitShift", {"x": ("l", [2]), "y": ("l", [2])}, direction="LEFT"), "unsupported-operator", VERSIONS),
    (quantised(np.asarray(0, np.int8)), "zero-point", ()),
    (quantised(np.asarray(3, np.int8)), "zero-point", VERSIONS),
    (quantised(np.asarray(0, np.uint8)), "zero-point", VERSIONS),
    (quantised(np.asarray(0, np.int8), -1.0), "scale", VERSIONS),
    (int8_rows(), "int8-gather", VERSIONS[3:]),
    (one("Einsum", {"x": ("f", [2, 3]), "y": ("f", [3, 4])}, equation="...k,kn->...n"), "einsum", VERSIONS[:2]),
    (one("Einsum", {"x": ("f", [3, 3])}, equation="ii->i"), "einsum", VERSIONS[:6]),
    (one("Einsum", {"x": ("f", [2, 3]), "y": ("f", [3, 4])}, equation="mk,kn->mn"), "einsum", ()),
    (one("MaxPool", X4, kernel_shape=[2, 2], dilations=[2, 2]), "pool-dilations", VERSIONS),
    (one("MaxPool", X4, kernel_shape=[3, 3]), "pool-dilations", ()),
    (one("CumSum", {"x": ("f", [4]), "axis": ("l", [])}), "constant-input", VERSIONS),
    (one("Conv", {"x": ("f", [1, 2, 8, 8]), "w": ("f", [2, 2, 1, 1])}), "constant-input", VERSIONS),
    (graph([node("Cast", "x", "out", to=11)], {"x": ("f", [2])}, {"out": ("d", None)}), "element-type", VERSIONS),
    (one("Add", {"x": ("l", [1])}, {"big": ints(1 << 40)}), "int64-clamp", ("8.5.2", "8.6.1", "9.3")),
    (one("Add", {"x": ("l", [1])}, {"small": ints(1 << 20)}), "int64-clamp", ()),
    (one("Identity", {"x": ("l", [1])}), "int64-binding", ("8.5.2", "8.6.1", "9.3")),
    (int8_table(), "int8-constant", ("8.5.2", "8.6.1", "9.3")),
    (stored("int8"), "int8-constant", ()),
    (stored("float"), "int8-constant", ()),
    (stored("float", None), "scale-axis", VERSIONS[:7]),
    (stored("float"), "scale-axis", ()),
    (quantised(np.asarray(0, np.int8)), "scale-axis", ()),
    (one("Gather", {"x": ("f", [9])}, {"i": ints(1, kind=np.int16)}), "constant-type", VERSIONS),  # type: ignore[arg-type]
    (one("Add", {"x": ("f", [1])}, {"small": random(1)}), "constant-type", ()),
    (one("Expand", {"x": ("f", [1])}, {"shape": ints(*[2] * 9)}), "tensor-rank", VERSIONS),
    (one("Expand", {"x": ("f", [1])}, {"shape": ints(*[2] * 8)}), "tensor-rank", ()),
    (one("Expand", {"x": ("f", [1])}, {"shape": ints(2**16, 2**15)}), "tensor-volume", VERSIONS[:6]),
    (one("Expand", {"x": ("f", [1])}, {"shape": ints(2**16, 2**15 - 1)}), "tensor-volume", ()),
]  # fmt: skip


@pytest.mark.parametrize(("model", "rule", "broken"), CASES, ids=[f"{i}-{case[1]}" for i, case in enumerate(CASES)])
def test_known_hazards(model: onnx.ModelProto, rule: str, broken: tuple[str, ...]) -> None:
    found = [version for version in VERSIONS if rule in {finding.rule for finding in lint(model, version)}]
    if broken and not set(broken) <= set(found):
        pytest.fail(f"{rule} missed on {set(broken) - set(found)}")
    wrong = set(found) - set(broken)
    if rule == "grid-sample-mode" and broken:
        wrong -= {"8.6.1", "10.0.1", "10.9", "10.16.2"}
        assert "11.4.1" not in found
    assert not wrong


def test_where_joins_ranks() -> None:
    """Importers from 8.5 on broadcast all three inputs to one rank."""
    weights = {"y": random(3)}
    model = one("Where", {"c": ("b", [2, 3]), "x": ("f", [2, 3])}, weights)
    assert [finding for version in VERSIONS for finding in lint(model, version)] == []


def test_messages_tell_what_happens() -> None:
    """A uint8 zero is taken for int8 without a word; whole numbers in TopK are refused by 8.5 and rounded by 8.6."""
    found = lint(quantised(np.asarray(0, np.uint8)), "8.6")
    assert {finding.rule for finding in found} == {"zero-point"}
    assert "silently computed as int8" in found[0].message
    messages = [
        finding.message
        for version in ("8.5", "8.6")
        for finding in lint(top_k(5, "i"), version)
        if finding.rule == "topk-int"
    ]
    assert ["refused" in message for message in messages] == [True, False]


def test_slices_to_the_end_are_harmless() -> None:
    weights = {"start": ints(1), "end": ints(2**63 - 1), "axes": ints(0)}
    model = one("Slice", {"x": ("f", [5])}, weights)
    assert lint(model, "8.5") == []


def test_foreign_operators() -> None:
    model = graph(
        [onnx.helper.make_node("FusedConv", ["x"], ["out"], name="fused", domain="com.microsoft")],
        {"x": ("f", [2])}, {"out": ("f", [2])}, domain="com.microsoft",
    )  # fmt: skip
    assert "foreign-domain" in {finding.rule for finding in lint(model, "10.3")}


def test_extra_outputs() -> None:
    model = graph(
        [node("MaxPool", "x", "out where", kernel_shape=[2, 2])], X4, {"out": ("f", None), "where": ("l", None)}
    )
    assert "extra-output" in {finding.rule for finding in lint(model, "11.0")}


def test_resize_modes() -> None:
    weights = {"scales": np.asarray([1, 1, 2, 2], np.float32)}
    for attributes, clean in (
        ({"mode": "linear"}, True),
        ({"mode": "cubic"}, False),
        ({"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}, False),
    ):
        model = graph([node("Resize", "x - scales", "out", **attributes)], X4, {"out": ("f", None)}, weights)
        assert (lint(model, "8.6") == []) is clean


@pytest.mark.parametrize("version", VERSIONS)
def test_our_graphs_are_clean_everywhere(version: str) -> None:
    """The graphs for 8.5 build on every later version; those for 8.6 from there on."""
    for name, model in exported("fp16", "8.5.2").stages.items():
        assert lint(model, version, name) == []
    for name, model in exported("fp32").stages.items():
        rules = {finding.rule for finding in lint(model, version, name)}
        assert rules == ({"unsupported-operator"} if (version, name) == ("8.5.2", "head") else set())


def test_errors_name_node_version_and_remedy() -> None:
    findings = lint(sampling("linear", 20), "11.1", "camera")
    with pytest.raises(ExportError, match=r"TensorRT 11\.1, camera: GridSample_0: .*nearest.*bilinear"):
        raise_on_errors(findings)
    warnings = lint(scatter("ScatterElements", "add"), "10.3")
    assert {finding.severity for finding in warnings} == {"warning"}
    raise_on_errors(warnings)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("8.5.2", (8, 5)), ("10.3.0.30", (10, 3)), ("10.x", (10, 0)), ("11", (11, 0)), ("8.x", (8, 5)), ("8.6-GA", None),
     ("", None), ("7.2", None), ("8.4", None), ("latest", None)],
)  # fmt: skip
def test_versions(text: str, wanted: tuple[int, int] | None) -> None:
    if wanted is None:
        with pytest.raises(RecipeError, match="TensorRT version"):
            parse_version(text)
    else:
        assert parse_version(text) == wanted


def test_operators_only_come_in() -> None:
    sets = [supported_operators(parse_version(version)) for version in VERSIONS]
    assert all(first <= second for first, second in itertools.pairwise(sets))
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert sets[-1] <= known
    assert [max_opset(parse_version(v)) for v in ("8.6", "9.3", "10.13", "11.4")] == [17, 19, 20, 24]
