"""One table and one drawing of pruning x 2:4 x precision: mAP, size, and interleaved latency in ONNX Runtime.

Each bundle was made by `altermoma export --engine int8` and holds fp32 and int8 graphs. int8 is scored twice: as ONNX
Runtime computes it, and as TensorRT does, with every rounding written out; the latter has no time of its own on a CPU.

    python scripts/int8_joint.py --data world --out joint dense=bundles/dense half=bundles/half half-2:4=bundles/half24
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from altermoma.deploy.benchmark import FRAME, Variant, pipeline_variant, run_benchmark
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.pipeline import Pipeline
from altermoma.progress import say
from altermoma.recipe import DataRecipe, Recipe, from_dict
from altermoma.report.pareto import Point, draw, joint_table, svg
from altermoma.storage import read_json, write_json, write_text
from altermoma.workflow.accuracy import evaluate_engine, rounded_pipeline, score_pipeline
from altermoma.workflow.place import Workplace
from altermoma.workflow.timing import spread

PRECISIONS = ("fp32", "int8")


def place_of(bundle: Bundle, data: str) -> Workplace:
    recorded = from_dict(DataRecipe, bundle.manifest.recipe["data"], "data.")
    return Workplace(Recipe(model=bundle.manifest.recipe["model"], data=dataclasses.replace(recorded, root=data)))


def scores(name: str, bundle: Bundle, place: Workplace, work: Path) -> dict[str, Any]:
    """mAP and NDS by precision; kept, so that a killed run goes on."""
    kept = work / f"{name}.json"
    found: dict[str, Any] = read_json(kept) if kept.is_file() else {}
    for precision in (*PRECISIONS, "tensorrt"):
        if precision in found:
            continue
        file = work / f"{name}-{precision}.npz"
        if precision == "tensorrt":
            metrics = score_pipeline(place, bundle, rounded_pipeline(bundle, "int8", 1), file)
        else:
            metrics = evaluate_engine(place, bundle.folder, "onnxruntime", precision, file)
        found[precision] = {"mAP": metrics["mAP"], "NDS": metrics["NDS"]}
        write_json(kept, found)
        say(f"{name} {precision}: {found[precision]}")
    return found


def graph_mib(bundle: Bundle, precision: str) -> float:
    records = bundle.stages_for("onnxruntime", precision).values()
    return sum(bundle.manifest.files[record.file].size for record in records) / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="NAME=FOLDER", help="the first is the yardstick")
    parser.add_argument("--data", required=True, help="nuScenes folder; the splits are the first bundle's")
    parser.add_argument("--out", type=Path, required=True, help="folder for table, drawing and unfinished work")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    named = [item.partition("=") for item in asked.bundles]
    bundles = {name: Bundle.open(Path(folder)) for name, _, folder in named}
    place = place_of(next(iter(bundles.values())), asked.data)
    found = {name: scores(name, bundle, place, asked.out / "work") for name, bundle in bundles.items()}
    variants: dict[str, Variant] = {
        f"{name} {precision}": pipeline_variant(Pipeline.from_bundle(bundle, precision=precision))
        for name, bundle in bundles.items()
        for precision in PRECISIONS
    }
    frames = [place.reader.read(token) for token in spread(place.val.tokens, asked.frames)]
    timed = run_benchmark(variants, frames, rounds=asked.rounds, warmup=1)
    points = {
        f"{name} {precision}": Point(
            title=f"{name} {precision}",
            ms=timed.latency_ms(f"{name} {precision}")[FRAME]["p50"],
            map_points=100 * found[name][precision]["mAP"],
            mib=graph_mib(bundle, precision),
        )
        for name, bundle in bundles.items()
        for precision in PRECISIONS
    }
    table = joint_table(points, next(iter(points)))
    plot = draw(list(points.values()))
    write_text(asked.out / "joint.md", f"{table}\n\n{timed.to_markdown()}")
    write_json(asked.out / "joint.json", {"scores": found, "latency": timed.to_dict()})
    if plot is not None:
        write_text(asked.out / "joint.svg", svg(plot))
    print(table)


if __name__ == "__main__":
    main()
