"""Runs stage graphs over calibration frames and keeps statistics of their tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.calib.statistics import TensorStatistics, read_statistics, write_statistics
from altermoma.errors import ExportError
from altermoma.export.graph import FLOAT, copy_model, dims_of, value_types
from altermoma.export.parity import open_session, run_session
from altermoma.progress import track

Arrays = dict[str, NDArray[Any]]

CHUNK_BYTES = 384 << 20
"""Of activations that one run of a stage hands out: large models are run several times per frame instead."""

DYNAMIC_ROWS = 100_000
"""What a dimension that changes from frame to frame is taken for."""

KEEP_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One stage with what is observed in it."""

    name: str
    graph: onnx.ModelProto
    tensors: tuple[str, ...]


def observe(
    stages: Sequence[Watched], tokens: Sequence[str], read: Callable[[str], Arrays], kept: Path
) -> dict[str, dict[str, TensorStatistics]]:
    """Statistics by stage and tensor over all frames.

    Args:
        stages: prepared fp32 graphs in the order in which they run.
        tokens: of the frames.
        read: graph inputs of a frame.
        kept: file of the unfinished work: a process that is killed and started again goes on behind the last frame
            written there.

    Raises:
        DataError: activations that are not finite.
    """
    found = {stage.name: {name: TensorStatistics() for name in stage.tensors} for stage in stages}
    done: tuple[str, ...] = ()
    if kept.is_file():
        flat, before = read_statistics(kept)
        if set(flat) == {f"{s.name}\n{name}" for s in stages for name in s.tensors} and before == tuple(
            tokens[: len(before)]
        ):
            done = before
            found = {s.name: {name: flat[f"{s.name}\n{name}"] for name in s.tensors} for s in stages}
    sessions = [_Session(stage) for stage in stages]
    written = time.monotonic()
    for index, token in enumerate(track(tokens[len(done) :], "Calibrating"), start=len(done) + 1):
        known = dict(read(token))
        for session in sessions:
            known |= session.run(known, found[session.stage.name])
        if time.monotonic() - written >= KEEP_EVERY_S or index == len(tokens):
            flat = {f"{stage}\n{name}": s for stage, tensors in found.items() for name, s in tensors.items()}
            write_statistics(kept, flat, tuple(tokens[:index]))
            written = time.monotonic()
    return found


class _Session:
    """A stage with its observed tensors as outputs, some at a time where they are too much for one run."""

    def __init__(self, stage: Watched) -> None:
        self.stage = stage
        self.inputs = {item.name for item in stage.graph.graph.input}
        self.outputs = [item.name for item in stage.graph.graph.output]
        self.chunks = _chunks(stage, [name for name in stage.tensors if name not in self.inputs])
        self.session = open_session(with_outputs(stage.name, stage.graph, stage.tensors))

    def run(self, known: Mapping[str, NDArray[Any]], found: Mapping[str, TensorStatistics]) -> Arrays:
        for name in sorted(self.inputs & set(found)):
            found[name].add(name, np.asarray(known[name], np.float32))
        outputs = run_session(self.session, known, self.outputs)
        for chunk in self.chunks:
            made = run_session(self.session, known, chunk)
            for name in chunk:
                found[name].add(name, made[name])
        return outputs


def with_outputs(stage: str, graph: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The graph with these tensors among its outputs.

    Raises:
        ExportError: the graph has no such tensor.
    """
    watched = copy_model(graph)
    computed = {name for node in watched.graph.node for name in node.output}
    public = {item.name for item in (*watched.graph.input, *watched.graph.output)}
    missing = sorted(set(tensors) - computed - public)
    if missing:
        raise ExportError(f"stage {stage} has no tensor {missing[0]}", expected="tensors of its prepared graph")
    for name in tensors:
        if name not in public:
            watched.graph.output.append(onnx.helper.make_tensor_value_info(name, FLOAT, None))
    return watched


def _chunks(stage: Watched, names: Sequence[str]) -> list[list[str]]:
    types = value_types(stage.graph)
    chunks: list[list[str]] = [[]]
    room = CHUNK_BYTES
    for name in names:
        dims = dims_of(types[name]) if name in types else None
        size = 4 * math.prod(n if isinstance(n, int) else DYNAMIC_ROWS for n in dims or [DYNAMIC_ROWS])
        if chunks[-1] and size > room:
            chunks.append([])
            room = CHUNK_BYTES
        chunks[-1].append(name)
        room -= size
    return [chunk for chunk in chunks if chunk]
