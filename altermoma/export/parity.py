"""How far the exported graphs are from torch: every stage alone, and the whole frame through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.deploy import onnxruntime_backend
from altermoma.deploy.matching import choice_drift
from altermoma.errors import ExportError
from altermoma.export.contract import ModelContract, StageContract
from altermoma.export.proposals import CHOSEN, MARGINS, SCORES, choice_fixed, choice_shown

if TYPE_CHECKING:
    import onnxruntime

    from altermoma.models.stages import StageModule

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One output of one stage against torch.

    Attributes:
        scope: `stage` (fed with torch's inputs) or `frame` (fed with what the stages before gave).
        tensor: name of the output; `chosen_proposals` is a head's choice, in scores (see `matching.ChoiceDrift`).
        max_abs, mean_abs: of the difference, in the tensor's unit.
        scaled_max: max_abs over the largest magnitude in torch; this is what the tolerance bounds.
        cosine: of both tensors as vectors; 1 where both are zero.
    """

    scope: Literal["stage", "frame"]
    stage: str
    tensor: str
    max_abs: float
    mean_abs: float
    scaled_max: float
    cosine: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.scaled_max <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.scope} {self.stage}.{self.tensor}: max {self.max_abs:.3g} (scaled {self.scaled_max:.3g}, tolerance "
            f"{self.tolerance:g}), mean {self.mean_abs:.3g}, cosine {self.cosine:.7f}"
        )


def torch_reference(modules: Mapping[str, StageModule], inputs: Mapping[str, Array]) -> Arrays:
    """Every stage output by name, computed by torch stage after stage from one frame's graph inputs.

    With them, where a stage lists proposals, what it chose them from (see `proposals`).
    """
    import torch

    from altermoma.models.stages import HeadStage

    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    given = set(tensors)
    with torch.inference_mode():
        for module in modules.values():
            outputs = module(*(tensors[name] for name in module.inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            if isinstance(module, HeadStage):
                choice = module.choice(*(tensors[name] for name in module.inputs))
                tensors.update(zip((CHOSEN, SCORES, MARGINS), choice, strict=True))
            tensors.update(zip(module.outputs, outputs, strict=True))
    return {name: tensor.numpy() for name, tensor in tensors.items() if name not in given}


def measure_parity(
    stages: Mapping[str, onnx.ModelProto],
    contract: ModelContract,
    inputs: Arrays,
    reference: Arrays,
    tolerance: float,
    frame_tolerance: float,
) -> list[Parity]:
    """Compares all stages, alone and in a chain, on ONNX Runtime's CPU backend.

    Args:
        stages: graphs by stage name.
        contract: names the order of the stages and their tensors.
        inputs: graph inputs of one frame.
        reference: torch's output of every stage (`torch_reference`).
        tolerance: bound of `Parity.scaled_max` of a stage alone.
        frame_tolerance: the same in the chain.
    """
    found: list[Parity] = []
    chained = dict(inputs)
    for stage in contract.stages:
        run = _runner(stages[stage.name], stage)
        found += compare_stage("stage", stage, reference, run(inputs | reference, reference), tolerance)
        in_chain = run(chained, reference)
        found += compare_stage("frame", stage, reference, in_chain, frame_tolerance)
        chained |= in_chain
    return sorted(found, key=lambda item: item.scope == "frame")


def _runner(model: onnx.ModelProto, stage: StageContract) -> Callable[[Arrays, Arrays], Arrays]:
    """What gives a stage's outputs for its inputs and torch's answers: of a head for torch's choice, with its own."""
    if stage.unordered is None:
        session = open_session(model)
        return lambda tensors, _: run_session(session, tensors)
    shown, fixed = open_session(choice_shown(model)), open_session(choice_fixed(model))

    def run(tensors: Arrays, reference: Arrays) -> Arrays:
        own = run_session(shown, tensors)[CHOSEN]
        return run_session(fixed, tensors | {CHOSEN: reference[CHOSEN]}) | {CHOSEN: own}

    return run


def raise_on_drift(parities: Iterable[Parity]) -> None:
    """Fails over the tolerance.

    Raises:
        ExportError: naming the first stage that drifts and everything of it that does.
    """
    failed = [item for item in parities if not item.passed]
    if failed:
        first = [item for item in failed if (item.scope, item.stage) == (failed[0].scope, failed[0].stage)]
        raise ExportError(
            f"stage {failed[0].stage} differs from torch:\n" + "\n".join(f"  {item}" for item in first),
            expected=f"at most {failed[0].tolerance:g} of the largest torch value of each output",
            remedy="name the layers that overflow or lose precision in fp32_nodes of the stage contract, export with "
            "precision fp32, or raise the tolerance in the recipe's [export] table",
        )


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A one-thread CPU session of a graph in memory, as a bundle's runtime opens it."""
    return onnxruntime_backend.open_session(model.SerializeToString(), model.graph.name or "without a name", threads=1)


def run_session(
    session: onnxruntime.InferenceSession, tensors: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> Arrays:
    """Runs a session on the tensors it names; floats are cast to the type the graph takes.

    Gives the outputs of these names; without any, all.

    Raises:
        ExportError: the runtime stopped.
    """
    types = {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(int32)": np.int32,
        "tensor(int64)": np.int64,
    }
    feeds = {item.name: np.asarray(tensors[item.name], types[item.type]) for item in session.get_inputs()}
    names = list(outputs) if outputs is not None else [item.name for item in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # its exceptions share no other base
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise ExportError(
            f"ONNX Runtime stopped on {shapes}: {error}",
            expected="a graph that runs at every size its contract allows",
            remedy="look for sizes that the module reads in Python: tracing freezes them",
        ) from error


def compare_stage(
    scope: Literal["stage", "frame"], stage: StageContract, expected: Arrays, actual: Arrays, tolerance: float
) -> list[Parity]:
    """Parity of every output of a stage, number by number, and of its choice of proposals where `actual` has one."""
    drifts = {spec.name: _drift(expected[spec.name], actual[spec.name]) for spec in stage.outputs}
    if CHOSEN in actual:
        drifts = {CHOSEN: _choice(expected, actual[CHOSEN])} | drifts
    return [
        Parity(scope=scope, stage=stage.name, tensor=name, tolerance=tolerance, **drift)
        for name, drift in drifts.items()
    ]


def _choice(expected: Arrays, found: Array) -> dict[str, float]:
    drift = choice_drift(expected[CHOSEN], expected[SCORES], expected[MARGINS], found)
    return {
        "max_abs": drift.needed,
        "mean_abs": drift.mean,
        "scaled_max": drift.needed / max(drift.largest, 1e-12),
        "cosine": drift.cosine,
    }


def _drift(expected: Array, actual: Array) -> dict[str, float]:
    if expected.shape != actual.shape:
        return {"max_abs": np.inf, "mean_abs": np.inf, "scaled_max": np.inf, "cosine": 0.0}
    if not expected.size:
        return {"max_abs": 0.0, "mean_abs": 0.0, "scaled_max": 0.0, "cosine": 1.0}
    a, b = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    difference = np.abs(a - b)
    largest = float(np.nan_to_num(difference.max(), nan=np.inf))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norm if norm > 0 else float(not a.any() and not b.any())
    return {
        "max_abs": largest,
        "mean_abs": float(np.nan_to_num(difference.mean(), nan=np.inf)),
        "scaled_max": largest / max(float(np.abs(a).max()), 1e-12),
        "cosine": float(np.nan_to_num(cosine, nan=0.0)),
    }
