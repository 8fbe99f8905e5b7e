"""Milliseconds of every layer of an exported dense model in ONNX Runtime, for a selection that prunes where time is.

    python scripts/paper_scale_profile.py --preset bevfusion-mit-r101-second --data ../shared/real --runs runs/paper

Nodes are named by module path, so that everything below a layer's path counts as its time: a sparse convolution's
gathers with its products. One thread; the least of the runs, as the first two
map memory. Writes <runs>/<preset>/profile.json.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import typer
from paper_scale_steps import Data, Preset, Runs, real_frame

from altermoma.deploy.benchmark import pinned_threads
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import STAGES
from altermoma.ops.prepare import FramePreparer
from altermoma.progress import say, track
from altermoma.storage import read_json, write_json


def profile(bundle: Bundle, tensors: dict[str, np.ndarray[Any, Any]], runs: int) -> dict[str, float]:
    """Milliseconds by node; `tensors` gains the outputs of the stages."""
    nodes: dict[str, float] = {}
    records = bundle.stages("fp32")
    for name in track(STAGES, "profile"):
        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.enable_profiling = 1, True
            options.profile_file_prefix = f"{folder}/{name}"
            session = onnxruntime.InferenceSession(
                bundle.graph(records[name]), options, providers=["CPUExecutionProvider"]
            )
            names = [item.name for item in session.get_outputs()]
            feeds = {item.name: tensors[item.name] for item in session.get_inputs()}
            for _ in range(runs):
                outputs = session.run(names, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        tensors.update(zip(names, outputs, strict=True))
        found: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                found[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
        nodes.update({f"{name}:{node}": min(ms) for node, ms in found.items()})
    return nodes


def computed_by(graph: onnx.GraphProto, name: str) -> str:
    """The node an event is of. ONNX Runtime names a convolution that it fused with what follows by the tensor it makes.

    Of a sum the first operand counts: blocks add their shortcut to what they compute.
    """
    makers = {tensor: node for node in graph.node for tensor in node.output}
    tensor = name.removesuffix("_nchwc")
    while tensor in makers and makers[tensor].op_type in ("Relu", "Add"):
        tensor = makers[tensor].input[0]
    return makers[tensor].name if tensor in makers else name


def owner(path: list[str], layers: Container[str]) -> str | None:
    """The layer that a node of this path belongs to."""
    above = (".".join(path[:count]) for count in range(len(path), 0, -1))
    return next((name for name in above if name in layers), None)


def by_layer(nodes: dict[str, float], bundle: Bundle, stage_of: dict[str, str]) -> dict[str, float]:
    """Milliseconds of each layer: of all nodes that belong to it."""
    records = bundle.stages("fp32")
    graphs = {name: onnx.load_model_from_string(bundle.graph(records[name])).graph for name in STAGES}
    found = dict.fromkeys(stage_of, 0.0)
    for key, ms in nodes.items():
        stage, _, event = key.partition(":")
        layer = owner(computed_by(graphs[stage], event).split("/"), stage_of)
        if layer is not None:
            found[layer] += ms
    return found


def main(*, preset: Preset, data: Data, runs: Runs, repeat: Annotated[int, typer.Option(help="Runs.")] = 4) -> None:
    """Profiles the dense fp32 bundle that `paper_scale_table.py` exported."""
    folder = runs / preset
    bundle = Bundle.open(folder / "dense-fp32")
    tensors: dict[str, Any] = dict(FramePreparer(bundle.manifest.geometry).prepare(real_frame(data)))
    with pinned_threads(1):
        nodes = profile(bundle, tensors, repeat)
    stage_of = {layer["name"]: layer["stage"] for layer in read_json(folder / "dense-prune.json")["layers"]}
    layer_ms = by_layer(nodes, bundle, stage_of)
    say(f"{sum(layer_ms.values()):.0f} of {sum(nodes.values()):.0f} ms belong to layers")
    write_json(folder / "profile.json", {"layer_ms": layer_ms, "node_ms": nodes})


if __name__ == "__main__":
    typer.run(main)
