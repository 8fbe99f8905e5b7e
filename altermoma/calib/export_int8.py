"""int8 graphs of a whole model, checked: what a bundle carries for TensorRT and for ONNX Runtime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.calib.fp8 import emulate_fp8, fp8_plan, to_fp8
from altermoma.calib.insert import ONNX_RUNTIME, tensorrt_dialect
from altermoma.calib.int8 import Share, StagePlan, quantised, share_of
from altermoma.calib.mixed import mixed
from altermoma.calib.ranges import Ranges
from altermoma.deploy.noise import NOISE, stage_noise
from altermoma.errors import ExportError
from altermoma.export.contract import ModelContract
from altermoma.export.export_model import ExportResult, finished
from altermoma.export.graph import INT64, copy_model
from altermoma.export.lint import Finding, lint, raise_on_errors
from altermoma.export.lint_tables import parse_version
from altermoma.export.parity import measure_parity, open_session, run_session
from altermoma.export.passes.emulate_half import emulate_half

Arrays = dict[str, NDArray[Any]]
StageNoise = dict[str, dict[str, dict[str, float]]]
"""By stage, tensor and measure."""

HALF_STEP = 2.0**-11
"""Largest rounding of a number in fp16, over the number."""


@dataclass(frozen=True, kw_only=True)
class Int8Export:
    """What an int8 export leaves.

    Attributes:
        tensorrt: the signed graphs, with fp16 for what is not int8, and their lint, records and parity.
        onnxruntime: the unsigned graphs, with fp32 for what is not int8.
        records: of the unsigned graphs, as in `ExportResult`.
        shares: multiply-adds in int8, by stage, on the reference frame.
        signal_db: signal-to-noise against fp32 by runtime, stage and tensor, each stage fed with torch's inputs.
        noise: how far every stage is from torch, fed with its inputs, by runtime, stage, tensor and measure
            (`altermoma.deploy.noise`).
        rounding: the same of TensorRT's graphs between two runs whose inputs differ by the rounding of fp16.
    """

    tensorrt: ExportResult
    onnxruntime: dict[str, onnx.ModelProto]
    records: dict[str, dict[str, Any]]
    shares: dict[str, Share]
    signal_db: dict[str, dict[str, dict[str, float]]]
    noise: dict[str, StageNoise]
    rounding: StageNoise

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: shares and signal."""
        whole = sum(share.whole for share in self.shares.values())
        return {
            "int8_macs": sum(share.int8 for share in self.shares.values()) / max(whole, 1),
            "int8_macs_by_stage": {name: share.part for name, share in self.shares.items()},
            "signal_db": self.signal_db,
        }


def export_int8(
    fp32: ExportResult,
    plans: Mapping[str, StagePlan],
    contract: ModelContract,
    ranges: Ranges,
    groups: frozenset[str],
    tolerance: float,
) -> Int8Export:
    """Quantises every stage for both runtimes and checks the graphs.

    Args:
        fp32: the export that was calibrated.
        plans: of its stages.
        contract: of the model.
        ranges: of its tensors.
        groups: layer groups that become int8.
        tolerance: of a stage fed with torch's inputs, as noise over signal (roots of their powers). Below it, what was
            measured is what the stage is held to from then on.

    Raises:
        ExportError: graphs that the target would refuse or compute wrongly, or that leave torch too far behind.
    """
    dialect = tensorrt_dialect(parse_version(fp32.trt_version))
    fp8 = ranges.settings.get("number") == "fp8"
    if fp8:
        dialect = dataclasses.replace(dialect, stored=False)
        plans = {name: fp8_plan(plan) for name, plan in plans.items()}
    signed, unsigned = {}, {}
    for name, plan in plans.items():
        found = ranges.tensors.get(name, {})
        half = mixed(quantised(plan, groups, found, dialect), plan.contract)
        half = to_fp8(half) if fp8 else half
        signed[name] = finished(half, contract, name, "int8")
        unsigned[name] = finished(quantised(plan, groups, found, ONNX_RUNTIME), contract, name, "int8")
    findings: list[Finding] = [item for name, graph in signed.items() for item in lint(graph, fp32.trt_version, name)]
    raise_on_errors(findings)
    checked = {name: emulate_half(emulate_fp8(graph) if fp8 else graph) for name, graph in signed.items()}
    parity = measure_parity(checked, contract, dict(fp32.inputs), fp32.reference, math.inf, math.inf)
    noise, rounding = noise_of(checked, fp32), rounding_of(checked, fp32)
    _raise_on_noise(noise, tolerance)
    other = noise_of(unsigned, fp32)
    _raise_on_noise(other, tolerance)
    return Int8Export(
        tensorrt=dataclasses.replace(
            fp32,
            precision="int8",
            stages=signed,
            records={stage.name: _halved(fp32.records[stage.name], contract, stage.name) for stage in contract.stages},
            findings=findings,
            parity=parity,
        ),
        onnxruntime=unsigned,
        records=fp32.records,
        shares=_shares(plans, groups, fp32),
        signal_db={"tensorrt": signal(checked, fp32), "onnxruntime": signal(unsigned, fp32)},
        noise={"tensorrt": noise, "onnxruntime": other},
        rounding=rounding,
    )


def noise_of(graphs: Mapping[str, onnx.ModelProto], fp32: ExportResult) -> StageNoise:
    """How far every stage is from torch, fed with torch's inputs; a head lists proposals of its own choice."""
    known, found = {**fp32.inputs, **fp32.reference}, {}
    for name, graph in graphs.items():
        made = run_session(open_session(graph), known)
        found[name] = stage_noise({tensor: fp32.reference[tensor] for tensor in made}, made)
    return found


def rounding_of(graphs: Mapping[str, onnx.ModelProto], fp32: ExportResult) -> StageNoise:
    """How far every stage is from itself where its inputs are off by the rounding of fp16.

    Where another order of sums moves a number across a step of int8, all behind it is rounded otherwise: so much two
    runtimes may differ on one graph.
    """
    rng, found = np.random.default_rng(0), {}
    plain = {**fp32.inputs, **fp32.reference}
    moved = {
        name: array * (1 + HALF_STEP * rng.uniform(-1, 1, array.shape)) if array.dtype.kind == "f" else array
        for name, array in plain.items()
    }
    for name, graph in graphs.items():
        session = open_session(graph)
        found[name] = stage_noise(run_session(session, plain), run_session(session, moved))
    return found


def _raise_on_noise(noise: StageNoise, tolerance: float) -> None:
    beyond = [
        f"{stage}.{tensor}: noise {measures[NOISE]:.2f} of the signal"
        for stage, tensors in noise.items()
        for tensor, measures in tensors.items()
        if measures.get(NOISE, 0.0) > tolerance
    ]
    if beyond:
        raise ExportError(
            "int8 leaves too little of the signal:\n  " + "\n  ".join(beyond),
            expected=f"noise of at most {tolerance:g} of the signal in each stage",
            remedy="calibrate with more frames or another method, keep the worst layer groups out of int8 "
            "(altermoma calibrate --max-map-drop), or raise export.int8_tolerance",
        )


def _halved(record: Mapping[str, Any], contract: ModelContract, name: str) -> dict[str, Any]:
    """The record of a stage whose tensors between stages are float16."""
    stage = contract.stage(name)

    def tensor(spec: Mapping[str, Any]) -> dict[str, Any]:
        half = stage.tensor(spec["name"]).between and spec["dtype"] == "float32"
        return {**spec, "dtype": "float16"} if half else dict(spec)

    return {**record, **{key: [tensor(spec) for spec in record[key]] for key in ("inputs", "outputs")}}


def signal(graphs: Mapping[str, onnx.ModelProto], fp32: ExportResult) -> dict[str, dict[str, float]]:
    """Signal-to-noise in dB by stage and float output, each stage fed with torch's inputs.

    The head is left out: rounding may let it list other proposals, and what differs then is not noise.
    """
    known = {**fp32.inputs, **fp32.reference}
    found: dict[str, dict[str, float]] = {}
    for name, graph in graphs.items():
        wanted = [spec["name"] for spec in fp32.records[name]["outputs"] if spec["dtype"] != "int32"]
        if "query_scores" in wanted:
            continue
        made = run_session(open_session(graph), known, wanted)
        found[name] = {tensor: decibels(known[tensor], made[tensor]) for tensor in wanted}
    return found


def decibels(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """10 log10 of the power of a signal over that of its error; 200 where there is no error."""
    clean = expected.astype(np.float64)
    noise = float(((found.astype(np.float64) - clean) ** 2).sum())
    power = float((clean**2).sum())
    return min(200.0, float(10 * np.log10(max(power, 1e-300) / noise))) if noise > 0 else 200.0


def _shares(plans: Mapping[str, StagePlan], groups: frozenset[str], fp32: ExportResult) -> dict[str, Share]:
    """Multiply-adds on the reference frame; rows that change from frame to frame are counted by running the stage."""
    known = {**fp32.inputs, **fp32.reference}
    return {name: share_of(plan, groups, rows_of(plan, known)) for name, plan in plans.items()}


def rows_of(plan: StagePlan, known: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Rows of the results of those products whose rows change from frame to frame, from their shapes alone."""
    tensors = [item.result for item in plan.products if item.macs is None]
    if not tensors:
        return {}
    measured = copy_model(plan.graph)
    for i, name in enumerate(tensors):
        measured.graph.node.append(onnx.helper.make_node("Shape", [name], [f"shape_{i}"], name=f"shape_{i}"))
        measured.graph.output.append(onnx.helper.make_tensor_value_info(f"shape_{i}", INT64, None))
    made = run_session(open_session(measured), known, [f"shape_{i}" for i in range(len(tensors))])
    return {name: int(np.prod(made[f"shape_{i}"][:-1])) for i, name in enumerate(tensors)}
