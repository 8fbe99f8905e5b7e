"""Faults planted into graphs, and the layer that is named for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from export_frames import exported
from export_graphs import Arrays, graph, node, random
from onnx import numpy_helper

from altermoma.deploy.manifest import StageRecord, TensorSpec
from altermoma.errors import ExportError
from altermoma.export.debug_precision import Diagnosis, diagnose, layer_error
from altermoma.export.debug_tensorrt import MARKS, diagnose_engine
from altermoma.export.graph import HALF, copy_model
from altermoma.export.passes.emulate_half import emulate_half
from altermoma.export.taps import Pair, alone, evaluate, paired, tapped

TOLERANCE = 5e-2


def stage_feeds(stage: str) -> Arrays:
    result = exported("fp32")
    return {**result.reference, **result.inputs}


def of_stage(stage: str, found: onnx.ModelProto, wanted: onnx.ModelProto | None = None) -> Diagnosis:
    return diagnose(
        wanted or exported("fp32").stages[stage],
        found,
        stage_feeds(stage),
        stage=stage,
        engine="fp16",
        tolerance=TOLERANCE,
    )


@pytest.mark.parametrize("stage", ["camera", "view", "lidar", "fusion", "head"])
def test_a_sound_stage_stays_within(stage: str) -> None:
    found = of_stage(stage, exported("fp16").stages[stage])
    assert found.first is None
    assert "every layer stays within" in found.verdict
    floats = [n for n in exported("fp32").stages[stage].graph.node if n.op_type in {"Conv", "MatMul", "Add", "Relu"}]
    assert {n.name for n in floats} <= {layer.node for layer in found.layers}, "every layer is looked at"
    assert stage == "head" or found.turned == {}


def weights_of(model: onnx.ModelProto, item: onnx.NodeProto) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == item.input[1])


def layers_of(stage: str, ops: tuple[str, ...]) -> list[str]:
    """Nodes of the fp16 graph with half-precision weights."""
    model = exported("fp16").stages[stage]
    halves = {t.name for t in model.graph.initializer if t.data_type == HALF and len(t.dims) >= 2}
    return [n.name for n in model.graph.node if n.op_type in ops and len(n.input) > 1 and n.input[1] in halves]


def wrong_weight(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """All weights of the layer in the wrong order."""
    return values.reshape(-1)[::-1].copy().reshape(values.shape)


def overflow(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.full_like(values, 6e4)


@pytest.mark.parametrize("plant", [wrong_weight, overflow])
@pytest.mark.parametrize(
    ("stage", "place"), [("camera", 0), ("camera", 4), ("camera", -1), ("lidar", 2), ("fusion", 1), ("head", 0)]
)
def test_a_planted_fault_is_named(
    stage: str,
    place: int,
    plant: Callable[[np.ndarray], np.ndarray],  # type: ignore[type-arg]
) -> None:
    name = layers_of(stage, ("Conv", "MatMul", "Gemm"))[place]
    model = copy_model(exported("fp16").stages[stage])
    item = next(n for n in model.graph.node if n.name == name)
    weights = weights_of(model, item)
    damaged = plant(numpy_helper.to_array(weights))
    weights.CopyFrom(numpy_helper.from_array(damaged, weights.name))
    found = of_stage(stage, model)
    assert found.first is not None
    assert found.first.node == name
    assert found.first.own is not None
    assert found.first.own > TOLERANCE
    assert "this layer is to blame" in found.verdict
    assert name in found.verdict


def chain(scale: float, *, halves: bool) -> onnx.ModelProto:
    """x -> grow -> shrink: the middle is beyond half precision where `scale` is large, the ends never are."""
    kind = np.float16 if halves else np.float32
    weights: Arrays = {"a": (np.eye(4) * scale).astype(kind), "b": (np.eye(4) / scale).astype(kind)}
    nodes = [
        node("MatMul", "x a", "big", name="grow"),
        node("Relu", "big", "positive", name="clip"),
        node("MatMul", "positive b", "out", name="shrink"),
    ]
    letter = "h" if halves else "f"
    return graph(nodes, {"x": (letter, [3, 4])}, {"out": (letter, None)}, weights)


def test_a_middle_beyond_half_precision() -> None:
    feeds = {"x": np.abs(random(3, 4)) + 3}
    for scale, first in ((1e3, None), (3e4, "grow")):
        found = diagnose(
            chain(scale, halves=False), chain(scale, halves=True), feeds, stage="toy", engine="fp16", tolerance=1e-2
        )
        assert (found.first.node if found.first else None) == first
    assert found.first is not None
    assert np.isinf(found.first.difference)
    assert "is not finite" in found.verdict
    assert found.to_dict()["first"]["difference"] == "inf"


def test_errors_that_add_up_are_told_from_a_layer_to_blame() -> None:
    """Twelve layers that each lose a little: the one that crosses the tolerance is not to blame."""
    names = [f"t{i}" for i in range(13)]

    def deep(kind: type) -> onnx.ModelProto:  # type: ignore[type-arg]
        weights: Arrays = {f"w{i}": (random(8, 8, seed=i) / 3).astype(np.float32) for i in range(12)}
        if kind is np.float16:
            weights = {k: (v * 1.01).astype(np.float32) for k, v in weights.items()}
        nodes = [node("MatMul", f"{names[i]} w{i}", names[i + 1], name=f"layer{i}") for i in range(12)]
        return graph(nodes, {"t0": ("f", [4, 8])}, {"t12": ("f", None)}, weights)

    found = diagnose(
        deep(np.float32), deep(np.float16), {"t0": random(4, 8)}, stage="toy", engine="int8", tolerance=0.055
    )
    assert found.first is not None
    assert found.first.node == "layer5"
    assert found.first.own == pytest.approx(0.01, rel=1e-3)
    assert "carried in" in found.verdict


def test_masks_of_infinities_are_equal() -> None:
    pair = Pair(node="n", op="Where", wanted="a", found="a")
    masked = np.array([-np.inf, 2.0])
    assert layer_error(pair, masked, masked.copy()).difference == 0
    assert layer_error(pair, masked, np.array([-np.inf, 1.0])).difference == 0.5
    assert np.isinf(layer_error(pair, masked, np.array([2.0, 2.0])).difference)
    assert np.isinf(layer_error(pair, np.array([1.0]), np.array([np.nan])).difference)


def test_taps_and_parts_compute_what_the_whole_graph_does() -> None:
    model = exported("fp32").stages["camera"]
    pairs = paired(model, model)
    assert [p.wanted for p in pairs] == [p.found for p in pairs]
    feeds = stage_feeds("camera")
    some = [pairs[i] for i in (3, len(pairs) // 2, len(pairs) - 2)]
    whole = evaluate(tapped(model, [p.wanted for p in some]), feeds)
    assert set(whole) == {*(p.wanted for p in some), *(o.name for o in model.graph.output)}
    for p in some:
        part = alone(model, p.found, {q.found for q in pairs if q.found != p.found})
        onnx.checker.check_model(part, full_check=True)
        assert len(part.graph.node) < 5
        rim = [i.name for i in part.graph.input if i.name not in feeds]
        known = evaluate(tapped(model, rim, only=True), feeds) if rim else {}
        (found,) = evaluate(part, {**feeds, **known}).values()
        np.testing.assert_allclose(found, whole[p.wanted], rtol=1e-4, atol=1e-5)
    with pytest.raises(ExportError, match="no tensor nowhere"):
        tapped(model, ["nowhere"])


def test_a_tie_that_rounding_turns_over_is_told_and_not_blamed() -> None:
    """Two scores that half precision cannot tell apart: another row is chosen, and nothing is wrong."""

    def choose(kind: type) -> onnx.ModelProto:  # type: ignore[type-arg]
        letter = "h" if kind is np.float16 else "f"
        weights: Arrays = {
            "k": np.asarray([1], np.int64),
            "w": np.eye(2).astype(kind),
            "flat": np.asarray([1], np.int64),
        }
        nodes = [
            node("MatMul", "rows w", "same", name="copy"),
            node("ReduceMax", "same", "score", name="score", axes=[1], keepdims=0),
            node("TopK", "score k", "best index", name="choice"),
            node("Reshape", "index flat", "chosen", name="flat"),
            node("Gather", "same chosen", "out", name="take"),
        ]
        return graph(nodes, {"rows": (letter, [2, 2])}, {"out": (letter, None)}, weights)

    feeds = {"rows": np.asarray([[1.0, -3.0], [1.0001, 5e-4]], np.float32)}
    found = diagnose(choose(np.float32), choose(np.float16), feeds, stage="toy", engine="fp16", tolerance=1e-2)
    assert found.turned == {"choice": 1.0}
    assert found.first is None
    assert [layer.node for layer in found.layers] == ["copy", "score", "choice", "take"]


@pytest.mark.parametrize("place", [0, 4, 11, -1])
def test_marks_close_in_on_an_engines_first_wrong_layer(place: int) -> None:
    """ONNX Runtime stands for the engine; a graph of fifty layers takes a few builds of eight marks each."""
    name = layers_of("camera", ("Conv",))[place]
    good, model = exported("fp16").stages["camera"], copy_model(exported("fp16").stages["camera"])
    weights = weights_of(model, next(n for n in model.graph.node if n.name == name))
    weights.CopyFrom(numpy_helper.from_array(wrong_weight(numpy_helper.to_array(weights)), weights.name))
    builds: list[int] = []

    def run_engine(graph: bytes, record: StageRecord, feeds: Arrays) -> Arrays:
        made = onnx.load_from_string(graph)
        assert [o.name for o in made.graph.output] == [spec.name for spec in record.outputs]
        builds.append(len(record.outputs))
        return evaluate(emulate_half(made), feeds)

    plain = exported("fp16").records["camera"]
    inputs, outputs = (
        tuple(TensorSpec(name=t["name"], dtype=t["dtype"], shape=tuple(t["shape"])) for t in plain[key])
        for key in ("inputs", "outputs")
    )
    record = StageRecord(name="camera", file="camera.onnx", inputs=inputs, outputs=outputs)
    for found, node_name in ((good, None), (model, name)):
        builds.clear()
        diagnosis = diagnose_engine(
            exported("fp32").stages["camera"],
            found,
            stage_feeds("camera"),
            run_engine,
            record=record,
            engine="fp16",
            tolerance=TOLERANCE,
        )
        assert (diagnosis.first.node if diagnosis.first else None) == node_name
        assert len(builds) <= 3
        assert max(builds) <= MARKS + len(outputs)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
def test_a_wrong_scale_in_an_int8_graph_is_named(wrong: int | None) -> None:
    """Three products between Q/DQ pairs; one weight has half of the scale that it needs: it is clipped."""
    matrices = [random(8, 8, seed=i) for i in range(3)]
    plain: Arrays = {f"w{i}": m for i, m in enumerate(matrices)}
    tensors = ["x", "y0", "y1", "y2"]

    def wide() -> onnx.ModelProto:
        nodes = [node("MatMul", f"{tensors[i]} w{i}", tensors[i + 1], name=f"layer{i}") for i in range(3)]
        return graph(nodes, {"x": ("f", [4, 8])}, {"y2": ("f", None)}, plain)

    x = random(4, 8, seed=9)
    known = {"x": x, **evaluate(tapped(wide(), ["y0", "y1"]), {"x": x})}

    def narrow() -> onnx.ModelProto:
        weights: Arrays = {"zero": np.asarray(0, np.int8)}
        nodes = []
        for i, matrix in enumerate(matrices):
            fine = np.float32(np.abs(matrix).max() / 127)
            scale = fine * np.float32(0.5 if wrong == i else 1.0)
            weights |= {
                f"w{i}": np.clip(np.round(matrix / scale), -127, 127).astype(np.int8),
                f"ws{i}": np.asarray(scale),
                f"xs{i}": np.asarray(np.abs(known[tensors[i]]).max() / 127, np.float32),
            }
            nodes += [
                node("QuantizeLinear", f"{tensors[i]} xs{i} zero", f"q{i}", name=f"layer{i}/quantise"),
                node("DequantizeLinear", f"q{i} xs{i} zero", f"d{i}", name=f"layer{i}/dequantise"),
                node("DequantizeLinear", f"w{i} ws{i} zero", f"wide{i}", name=f"layer{i}/weight"),
                node("MatMul", f"d{i} wide{i}", tensors[i + 1], name=f"layer{i}"),
            ]
        return graph(nodes, {"x": ("f", [4, 8])}, {"y2": ("f", None)}, weights)

    found = diagnose(wide(), narrow(), {"x": x}, stage="toy", engine="int8", tolerance=5e-2)
    assert [layer.node for layer in found.layers] == ["layer0", "layer1", "layer2"]
    assert (found.first.node if found.first else None) == (None if wrong is None else f"layer{wrong}")
    assert found.first is None or "to blame" in found.verdict
