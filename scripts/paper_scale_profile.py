"""Milliseconds of every layer of an exported dense model in ONNX Runtime, for a selection that prunes where time is.

    python scripts/paper_scale_profile.py --preset bevfusion-mit-r101-second --data ../shared/real --runs runs/paper

Nodes are named by module path, so that everything below a layer's path counts as its time: a sparse convolution's
gathers with its product. One thread; the least of the runs. Writes <runs>/<preset>/profile.json.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer
from paper_scale_steps import Data, Preset, Runs, real_frame

from altermoma.deploy.benchmark import pinned_threads
from altermoma.deploy.bundle import Bundle
from altermoma.ops.prepare import FramePreparer
from altermoma.progress import track
from altermoma.storage import read_json, write_json


def profile(bundle: Bundle, tensors: dict[str, np.ndarray[Any, Any]], runs: int) -> dict[str, float]:
    """Milliseconds by node; `tensors` gains the outputs of the stages."""
    nodes: dict[str, float] = {}
    for name, record in track(list(bundle.stages("fp32").items()), "profile"):
        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.enable_profiling = 1, True
            options.profile_file_prefix = f"{folder}/{name}"
            session = onnxruntime.InferenceSession(bundle.graph(record), options, providers=["CPUExecutionProvider"])
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


def by_layer(nodes: dict[str, float], layers: list[str]) -> dict[str, float]:
    """Milliseconds of each layer: of all nodes below its module path."""
    found: dict[str, float] = {}
    for layer in layers:
        path = layer.replace(".", "/") + "/"
        found[layer] = sum(ms for node, ms in nodes.items() if node.partition(":")[2].startswith(path))
    return found


def main(*, preset: Preset, data: Data, runs: Runs, repeat: Annotated[int, typer.Option(help="Runs.")] = 2) -> None:
    """Profiles the dense fp32 bundle that `paper_scale_table.py` exported."""
    folder = runs / preset
    bundle = Bundle.open(folder / "dense-fp32")
    tensors: dict[str, Any] = dict(FramePreparer(bundle.manifest.geometry).prepare(real_frame(data)))
    with pinned_threads(1):
        nodes = profile(bundle, tensors, repeat)
    layers = [layer["name"] for layer in read_json(folder / "dense-prune.json")["layers"]]
    layer_ms = by_layer(nodes, layers)
    write_json(folder / "profile.json", {"layer_ms": layer_ms, "node_ms": nodes})


if __name__ == "__main__":
    typer.run(main)
