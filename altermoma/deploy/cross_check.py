"""Engines against ONNX Runtime on this machine, stage by stage, each fed with the reference's inputs.

polygraphy's Comparator judges where polygraphy is installed; elsewhere (a vehicle) the same rule is applied here: no
element farther off than the tolerance times the output's largest magnitude, and neither NaN nor infinity. The head's
proposals are brought into one order first, as near ties may change places. Both are told by `judge`. int8 is held to
the measures of `noise`, and against ONNX Runtime's run of the engine's own graph (`same_graphs`), not of the one that
ONNX Runtime has in its place: that one rounds elsewhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import StageRecord
from altermoma.deploy.noise import limits, stage_noise, worst
from altermoma.deploy.reference import Reference
from altermoma.deploy.self_check import align_proposals, reference_inputs, told_of
from altermoma.deploy.stage_io import Arrays, StageRunner
from altermoma.errors import EngineError

Judge = Literal["polygraphy", "altermoma"]
Pairs = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True, kw_only=True)
class CrossCheck:
    """One output of one stage on two runtimes.

    Attributes:
        difference: largest absolute difference over the largest magnitude on ONNX Runtime; of int8 the `measure` that
            comes nearest to its limit (`deploy.noise`).
        judge: who said whether it passed.
        measure: what `difference` is.
    """

    precision: str
    stage: str
    tensor: str
    difference: float
    allowed: float
    passed: bool
    judge: Judge
    measure: str = "difference"


def cross_check(
    precision: str,
    engines: Mapping[str, StageRunner],
    others: Mapping[str, StageRunner],
    reference: Reference,
    allowed: float,
) -> list[CrossCheck]:
    """Every output of every stage that both have.

    Args:
        precision: of both; decides what is measured.
        engines: stages under test.
        others: the same on ONNX Runtime (`same_graphs`).
        reference: gives every stage's inputs.
        allowed: tolerance of `CrossCheck.difference`; of int8 the bound of the noise, below which an engine is held to
            what other roundings of its graph were measured to do.

    Raises:
        EngineError: a stage does not run.
        ValueError: an int8 stage and another graph, which rounds elsewhere.
    """
    found = []
    for name in engines:
        if name not in others:
            continue
        fed = reference_inputs(engines[name].record, reference)
        got, want = engines[name].run(fed), others[name].run(fed)
        if precision == "int8":
            if others[name].record.file != engines[name].record.file:
                raise ValueError(f"{engines[name].record.file} is held against {others[name].record.file}")
            found += _by_noise(engines[name].record, got, want, allowed)
            continue
        pairs = align_proposals(_floats(want), got, allowed)
        found += _judged(precision, name, pairs, allowed)
    return found


def same_graphs(bundle: Bundle, precision: str, *, threads: int = 1) -> dict[str, StageRunner]:
    """ONNX Runtime on the graphs that engines are built from.

    Raises:
        BundleError: the bundle lacks the precision, or a graph does not load in ONNX Runtime.
    """
    from altermoma.deploy.onnxruntime_backend import OnnxRuntimeStage

    stages = bundle.stages(precision)
    return {name: OnnxRuntimeStage(bundle.graph(record), record, threads=threads) for name, record in stages.items()}


def require_agreement(checks: list[CrossCheck]) -> None:
    """
    Raises:
        EngineError: names every output on which the runtimes differ.
    """
    faults = [
        f"{c.precision} {c.stage}.{c.tensor}: "
        + (told_of(c.measure, c.difference, c.allowed) if np.isfinite(c.difference) else "NaN or infinity")
        for c in checks
        if not c.passed
    ]
    if faults:
        raise EngineError(
            "engines and ONNX Runtime differ on the same graphs:\n  " + "\n  ".join(faults),
            expected="the same outputs within the tolerance in the manifest",
            remedy="altermoma debug-precision BUNDLE --stage STAGE --backend tensorrt names the layer",
        )


def _by_noise(record: StageRecord, got: Arrays, want: Arrays, allowed: float) -> list[CrossCheck]:
    checks = []
    for name, measured in stage_noise(want, {name: got[name] for name in want}).items():
        measure, off, limit = worst(measured, limits(record.rounding.get(name, {}), allowed))
        checks.append(
            CrossCheck(
                precision="int8",
                stage=record.name,
                tensor=name,
                difference=off,
                allowed=limit,
                passed=off <= limit,
                judge="altermoma",
                measure=measure,
            )
        )
    return checks


def _floats(outputs: Arrays) -> Arrays:
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in outputs.items()}


def _judged(precision: str, stage: str, pairs: Pairs, allowed: float) -> list[CrossCheck]:
    bounds = {name: allowed * max(float(np.abs(want).max(initial=0.0)), 1e-12) for name, (_, want) in pairs.items()}
    judge: Judge = "polygraphy" if importlib.util.find_spec("polygraphy") is not None else "altermoma"
    off = {name: _difference(got, want) for name, (got, want) in pairs.items()}
    passed = by_polygraphy(pairs, bounds) if judge == "polygraphy" else by_hand(pairs, bounds)
    return [
        CrossCheck(
            precision=precision,
            stage=stage,
            tensor=name,
            difference=off[name],
            allowed=allowed,
            passed=passed[name],
            judge=judge,
        )
        for name in pairs
    ]


def _difference(got: NDArray[np.float64], want: NDArray[np.float64]) -> float:
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - want).max(initial=0.0)) / max(float(np.abs(want).max(initial=0.0)), 1e-12)


def by_hand(pairs: Pairs, limits: Mapping[str, float]) -> dict[str, bool]:
    """Whether each output is finite and within its limit."""
    return {
        name: bool(np.isfinite(got).all() and (np.abs(got - want) <= limits[name]).all())
        for name, (got, want) in pairs.items()
    }


def by_polygraphy(pairs: Pairs, limits: Mapping[str, float]) -> dict[str, bool]:
    """The same by polygraphy's Comparator, output by output."""
    from polygraphy import comparator
    from polygraphy.comparator import Comparator, RunResults
    from polygraphy.logger import G_LOGGER

    # A function makes the rule in older versions, a class in newer ones; both take the same.
    rule_of = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple
    # It reports on its own; what matters is said by the caller.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        passed: dict[str, bool] = {}
        for name, (got, want) in pairs.items():
            results: Any = RunResults()
            for runner, array in (("tensorrt", got), ("onnxruntime", want)):
                results.add([{name: array}], runner_name=runner)
            valid = Comparator.validate(results, check_inf=True, check_nan=True)
            rule = rule_of(rtol=0.0, atol=limits[name], check_error_stat="elemwise")
            close = Comparator.compare_accuracy(results, compare_func=rule)
            passed[name] = bool(valid) and bool(close)
    return passed
