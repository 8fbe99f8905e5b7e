"""What int8 costs in mAP, with the error of that difference: bundles x calibrators x runtimes, on scenes of their own.

Each bundle's fp32 graphs are calibrated anew on frames of --data, once by each method, and scored on the frames of
another world that no model has seen. Differences are paired, their error is over scenes. What was scored is kept, under
a key of all that decides it.

    python scripts/int8_accuracy.py --data world48 --validation unseen --work acc --methods percentile:99.99,mse \
        dense=bundles/dense pruned=bundles/pruned
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from altermoma.calib.frames import choose_frames
from altermoma.calib.insert import ONNX_RUNTIME, Dialect, tensorrt_dialect
from altermoma.calib.int8 import StagePlan, chosen_groups, plan_stages, quantised, watch
from altermoma.calib.mixed import mixed
from altermoma.calib.observe import observe
from altermoma.calib.ranges import find_ranges
from altermoma.calib.scales import Range
from altermoma.calib.settings import CalibrationSettings, StageMethods, load_settings
from altermoma.calib.trials import Run, chain
from altermoma.data.dataset import FrameDataset, prefetch
from altermoma.data.nuscenes import NuScenesReader
from altermoma.deploy.bundle import MANIFEST_FILE, Bundle
from altermoma.evaluation.nuscenes_eval import DetectionMetrics, evaluate_matches
from altermoma.evaluation.paired import Matches, compare
from altermoma.export.contract import load_contract
from altermoma.export.graph import copy_model
from altermoma.export.passes.emulate_half import emulate_half
from altermoma.export.passes.to_fp16 import to_fp16
from altermoma.frames import Boxes
from altermoma.ops.decode import decode
from altermoma.ops.prepare import FramePreparer
from altermoma.progress import track
from altermoma.recipe import DataRecipe, Recipe
from altermoma.storage import content_key, sha256_of
from altermoma.workflow.detections import keep_detections
from altermoma.workflow.keys import code_version
from altermoma.workflow.place import Workplace
from altermoma.workflow.plan import data_inputs

Ranges = Mapping[str, Mapping[str, Range]]

AS_RECIPE = "recipe"
"""What the recipe's own method, with its [methods] by stage, is called."""


def place_of(model: str, root: str, split: str) -> Workplace:
    data = dataclasses.replace(DataRecipe(), root=root, train_split=split, val_split=split)
    return Workplace(Recipe(model=model, data=data))


def work_of(asked: argparse.Namespace, bundle: Bundle) -> Path:
    """Where statistics and detections of a bundle are kept: elsewhere with anything else that they depend on."""
    model = str(bundle.manifest.recipe["model"])
    decides = {
        "bundle": sha256_of(bundle.folder / MANIFEST_FILE),
        "data": data_inputs(place_of(model, asked.data, asked.data_split)),
        "validation": data_inputs(place_of(model, asked.validation, asked.split)),
        "settings": load_settings(asked.recipe).to_dict(),
        "code": code_version(),
        "script": sha256_of(Path(__file__)),
    }
    folder: Path = asked.work / content_key(decides)
    return folder


def calibrated(asked: argparse.Namespace, bundle: Bundle, plans: Mapping[str, StagePlan]) -> dict[str, Ranges]:
    """Ranges by method, from one pass over the frames."""
    place = place_of(str(bundle.manifest.recipe["model"]), asked.data, asked.data_split)
    geometry, settings = bundle.manifest.geometry, load_settings(asked.recipe)
    tokens = place.reader.tokens(asked.data_split)
    frames = choose_frames(place.reader, tokens, geometry, count=settings.frames, pool=settings.pool)
    preparer, groups = FramePreparer(geometry), chosen_groups(plans, settings.keeps)
    found = observe(
        watch(plans, groups),
        [frame.token for frame in frames],
        lambda token: dict(preparer.prepare(place.reader.read(token))),
        work_of(asked, bundle) / "statistics.npz",
    )
    methods = asked.methods.split(",") if asked.methods else [AS_RECIPE]
    return {method: find_ranges(found, settings_of(settings, method)) for method in methods}


def settings_of(settings: CalibrationSettings, method: str) -> CalibrationSettings:
    """The recipe with this method in all stages: its own [methods] would go before."""
    if method == AS_RECIPE:
        return settings
    kind, _, percent = method.partition(":")
    share = float(percent) if percent else settings.percentile
    return dataclasses.replace(
        settings,
        method=kind,  # type: ignore[arg-type]  # checked as it is used
        percentile=share,
        methods=StageMethods(),
    )


def runs_of(asked: argparse.Namespace, bundle: Bundle) -> dict[str, Run]:
    """fp32, fp16, and int8 by method and runtime: TensorRT's graphs, fp16 too, with every rounding written out."""
    contract = load_contract(str(bundle.manifest.recipe["model"]))
    records = bundle.stages("fp32")
    floats = {name: onnx.load_model_from_string(bundle.graph(record)) for name, record in records.items()}
    plans = plan_stages(floats, contract)
    groups = chosen_groups(plans, load_settings(asked.recipe).keeps)
    halves = {stage.name: emulate_half(to_fp16(copy_model(floats[stage.name]), stage)) for stage in contract.stages}
    runs = {"fp32": chain(plans_as_graphs(plans)), "fp16": chain(halves)}
    for method, ranges in calibrated(asked, bundle, plans).items():
        for runtime, dialect in dialects_of(asked, method).items():
            graphs = {stage: quantised(plan, groups, ranges[stage], dialect) for stage, plan in plans.items()}
            if runtime == "tensorrt":
                graphs = {stage: emulate_half(mixed(graph, plans[stage].contract)) for stage, graph in graphs.items()}
            runs[f"{method} {runtime}"] = chain(graphs)
    return runs


def dialects_of(asked: argparse.Namespace, method: str) -> dict[str, Dialect]:
    """Runtimes whose graphs a method is scored in."""
    dialects = {"tensorrt": tensorrt_dialect((10, 3))}
    if not asked.onnxruntime or method in asked.onnxruntime.split(","):
        dialects["onnxruntime"] = ONNX_RUNTIME
    return dialects


def plans_as_graphs(plans: Mapping[str, StagePlan]) -> dict[str, onnx.ModelProto]:
    return {name: plan.graph for name, plan in plans.items()}


def detected(runs: Mapping[str, Run], frames: FrameDataset, start: int) -> Iterator[tuple[str, Boxes]]:
    """Detections by title and token: a frame is prepared once for all runs, which takes half as long as fp32."""
    first, done = divmod(start, len(runs))
    rest = range(first, len(frames))
    for index, sample in zip(rest, track(prefetch(frames[i] for i in rest), "Detecting", total=len(rest)), strict=True):
        for title, run in list(runs.items())[done if index == first else 0 :]:
            (boxes,) = decode(run(dict(sample.inputs)), frames.geometry)
            yield f"{title}/{sample.token}", boxes


def scored(asked: argparse.Namespace, bundle: Bundle) -> dict[str, tuple[DetectionMetrics, Matches]]:
    place = place_of(str(bundle.manifest.recipe["model"]), asked.validation, asked.split)
    frames = place.val_for(bundle.manifest.geometry)
    runs = runs_of(asked, bundle)
    file = work_of(asked, bundle) / f"{content_key(list(runs))}.npz"
    found = keep_detections(file, lambda start: detected(runs, frames, start))
    scores = {}
    for title in runs:
        mine = {key.rpartition("/")[2]: boxes for key, boxes in found.items() if key.rpartition("/")[0] == title}
        scores[title] = evaluate_matches(place.reader, asked.split, mine)
    return scores


def scenes_of(reader: NuScenesReader, tokens: Sequence[str]) -> list[str]:
    """Scene of each frame: matches follow the devkit's order, which is not the reader's."""
    return [reader.tables.samples[token].scene for token in tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--data", required=True, help="nuScenes folder with the calibration frames")
    parser.add_argument("--data-split", default="synth_train")
    parser.add_argument("--validation", required=True, help="nuScenes folder that is scored")
    parser.add_argument("--split", default="synth_train", help="of the folder that is scored")
    parser.add_argument("--recipe", default="synthetic", help="calibration recipe: frames and what stays out of int8")
    parser.add_argument(
        "--methods",
        default="",
        help="with commas, each in all stages: percentile:99.99,mse,minmax,entropy; as the recipe says where left out",
    )
    parser.add_argument(
        "--onnxruntime", default="", help="methods that are scored in ONNX Runtime's graphs, too; all where left out"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for unfinished work")
    asked = parser.parse_args()
    methods = asked.methods.split(",") if asked.methods else [AS_RECIPE]
    if strange := set(filter(None, asked.onnxruntime.split(","))) - set(methods):
        parser.error(f"--onnxruntime names {', '.join(sorted(strange))}, which --methods does not")
    asked.work.mkdir(parents=True, exist_ok=True)
    reader = place_of("bevfusion-tiny", asked.validation, asked.split).reader
    print("| model | graphs | mAP | NDS | mAP lost | error | 95 % |\n|---|---|---|---|---|---|---|")
    for name, _, folder in (item.partition("=") for item in asked.bundles):
        found = scored(asked, Bundle.open(Path(folder)))
        for title, (metrics, matches) in found.items():
            apart = compare(matches, found["fp32"][1], scenes_of(reader, matches.tokens))
            print(
                f"| {name} | {title} | {100 * metrics.mAP:.2f} | {100 * metrics.NDS:.2f} | {0.0 - apart.points:+.2f} | "
                f"{apart.error:.2f} | {0.0 - apart.high:+.2f} to {0.0 - apart.low:+.2f} |"
            )


if __name__ == "__main__":
    main()
