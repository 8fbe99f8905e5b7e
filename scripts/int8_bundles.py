"""What int8 does to bundles: signal and share by stage, size, and latency against fp32, dense and pruned side by side.

Each fp32 bundle is calibrated on the frame that it carries, by its extremes: one frame tells no more. It is enough for
signal-to-noise, shares and times; accuracy needs a data set (`altermoma calibrate`, `altermoma-export --engine int8`).

    python scripts/int8_bundles.py --out int8.json --rounds 5 dense-fp32 pruned-fp32
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from altermoma.calib.export_int8 import decibels, rows_of
from altermoma.calib.insert import ONNX_RUNTIME, Dialect, tensorrt_dialect
from altermoma.calib.int8 import StagePlan, chosen_groups, plan_stages, quantised, share_of, watch
from altermoma.calib.observe import observe
from altermoma.calib.ranges import find_ranges
from altermoma.calib.settings import CalibrationSettings, load_settings
from altermoma.deploy.benchmark import pinned_threads
from altermoma.deploy.bundle import Bundle
from altermoma.export.contract import load_contract
from altermoma.export.parity import open_session, run_session
from altermoma.progress import say, track
from altermoma.storage import write_json

Arrays = dict[str, NDArray[Any]]
DIALECTS: dict[str, Dialect] = {"onnxruntime": ONNX_RUNTIME, "tensorrt": tensorrt_dialect((10, 3))}


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """One bundle with its int8 graphs for ONNX Runtime, and what was found about both runtimes' graphs."""

    known: Arrays
    graphs: dict[str, dict[str, bytes]]
    record: dict[str, Any]


def quantise(folder: Path, work: Path) -> Quantised:
    """Calibrates a bundle on its own frame."""
    bundle = Bundle.open(folder)
    contract = load_contract(str(bundle.manifest.recipe["model"]))
    reference = bundle.reference()
    known: Arrays = {**reference.host, **reference.tensors}
    records = bundle.stages("fp32")
    floats = {name: bundle.graph(records[name]) for name in records}
    settings = CalibrationSettings(method="minmax", keep=load_settings("nuscenes").keep)
    started, busy = time.monotonic(), time.process_time()
    plans = plan_stages({name: onnx.load_model_from_string(graph) for name, graph in floats.items()}, contract)
    groups = chosen_groups(plans, settings.keeps)
    token = bundle.manifest.name
    statistics = observe(watch(plans, groups), [token], lambda _: known, work / f"{folder.name}.npz")
    ranges = find_ranges(statistics, settings)
    made = {
        kind: {name: quantised(plan, groups, ranges[name], dialect) for name, plan in plans.items()}
        for kind, dialect in DIALECTS.items()
    }
    seconds, processor = time.monotonic() - started, time.process_time() - busy
    shares = {name: share_of(plan, groups, rows_of(plan, known)) for name, plan in plans.items()}
    sizes = {kind: sum(len(graph.SerializeToString()) for graph in graphs.values()) for kind, graphs in made.items()}
    record = {
        "bundle": folder.name,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "int8_macs": sum(s.int8 for s in shares.values()) / sum(s.whole for s in shares.values()),
        "int8_macs_by_stage": {name: round(share.part, 4) for name, share in shares.items()},
        "gmacs_by_stage": {name: round(share.whole / 1e9, 3) for name, share in shares.items()},
        "signal_db": {kind: signals(plans, graphs, known) for kind, graphs in made.items()},
        "bytes": {"fp32": sum(map(len, floats.values())), **sizes},
    }
    unsigned = {name: graph.SerializeToString() for name, graph in made["onnxruntime"].items()}
    return Quantised(known=known, graphs={"fp32": floats, "int8": unsigned}, record=record)


def signals(plans: dict[str, StagePlan], graphs: dict[str, onnx.ModelProto], known: Arrays) -> dict[str, float]:
    """The worst output of each stage, fed with torch's inputs; the head lists proposals, which rounding exchanges."""
    found = {}
    for name in [name for name in plans if name != "head"]:
        made = run_session(open_session(graphs[name]), known)
        found[name] = round(min(decibels(known[tensor], array) for tensor, array in made.items()), 1)
    return found


def latencies(variants: dict[str, Quantised], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Median milliseconds of processor by bundle, precision and stage; every round times all, one after the other.

    A stage runs on one thread, so that this is its time but for waiting, of which a busy machine has much.
    """
    sessions = {
        (bundle, precision, stage): open_session(onnx.load_model_from_string(graph))
        for bundle, found in variants.items()
        for precision, graphs in found.graphs.items()
        for stage, graph in graphs.items()
    }
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in sessions}
    with pinned_threads(1):
        for turn in track(range(rounds + 1), "Timing"):
            for key, session in sessions.items():
                started = time.process_time()
                run_session(session, variants[key[0]].known)
                if turn:
                    times[key].append(1e3 * (time.process_time() - started))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (bundle, precision, stage), each in times.items():
        found.setdefault(bundle, {}).setdefault(precision, {})[stage] = round(float(np.median(each)), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, help="fp32 bundles of one model")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--work", type=Path, default=Path("int8-work"), help="folder for statistics")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 for none")
    asked = parser.parse_args()
    variants = {}
    for folder in asked.bundles:
        variants[folder.name] = quantise(folder, asked.work)
        say(str(variants[folder.name].record))
    times = latencies(variants, asked.rounds) if asked.rounds else {}
    write_json(asked.out, {"bundles": [item.record for item in variants.values()], "latency_ms": times})
    print(times)


if __name__ == "__main__":
    main()
