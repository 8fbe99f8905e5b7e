"""The records of all steps as one summary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from altermoma.deploy.benchmark import FRAME, PROCESSOR
from altermoma.errors import ExportError
from altermoma.recipe import ParityRecipe, Recipe
from altermoma.report.summary import (
    BoxParity,
    Difference,
    Engines,
    LayerWidth,
    Parity,
    Percentiles,
    Product,
    RealisedShare,
    SparseProducts,
    Summary,
    Variant,
    graph_p50,
    realised,
)
from altermoma.workflow.calibrate import SEARCH, SENSITIVITY_FILE
from altermoma.workflow.given_tables import LATENCY, latency_line
from altermoma.workflow.plan import Engine, engines_of
from altermoma.workflow.sparsity import SPARSITY
from altermoma.workflow.steps import Records, StepResult, peak_memory_mib
from altermoma.workflow.versions import versions

EMULATED = "fp16 is emulated on the CPU: right for accuracy, meaningless for latency, so none is given"
BUSY = 1.6
"""Load per processor above which latencies are not to be trusted; the steps before leave up to 1.3."""
_RUNTIME_TITLES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "torch": "torch"}


def summarise(recipe: Recipe, results: Mapping[str, StepResult], started: float, bundle: str) -> Summary:
    """Puts the figures side by side.

    Args:
        recipe: of the run.
        results: of all steps.
        started: time.monotonic() at the start of this process's work.
        bundle: the bundle's path, for the command to run on the target.

    Raises:
        ExportError: an engine that is farther from torch than the recipe allows.
    """
    records = {name: result.record for name, result in results.items()}
    reduction = 1 - records["prune"]["flops_after"]["total"] / records["prune"]["flops_before"]["total"]
    latency = _latencies(records["bench"])
    engines = engines_of(recipe, records["engines"]["precisions"])
    variants = {
        "dense": _variant(records, latency, reduction, name="dense"),
        "pruned": _variant(records, latency, reduction, name="pruned"),
        **{
            engine.variant: _variant(records, latency, reduction, name=engine.variant, engine=engine)
            for engine in engines
        },
    }
    parity = {engine.variant: _parity(records, engine) for engine in engines}
    drifts = [line for engine in engines for line in drift(engine, parity[engine.variant].boxes, recipe.parity)]
    if drifts and recipe.parity.beyond == "error":
        raise _beyond(drifts, recipe.parity)
    seconds = {name: round(result.seconds, 2) for name, result in results.items()}
    overhead = max(0.0, time.monotonic() - started - sum(r.seconds for r in results.values() if not r.reused))
    seconds["bundle-and-report"] = round(overhead, 2)
    return Summary(
        name=recipe.name,
        model=recipe.model,
        data=_data(recipe, records["data"]),
        variants=variants,
        flops_reduction=reduction,
        realised_share=_shares(latency, reduction),
        parity=parity,
        engines=_engines(recipe, records["engines"], bundle),
        channels=_channels(records["prune"]),
        versions=versions(),
        device=_device(records["bench"]["conditions"]),
        seconds={**seconds, "total": round(sum(seconds.values()), 2)},
        peak_memory_mib=round(max(peak_memory_mib(), *(result.peak_memory_mib for result in results.values())), 1),
        recipe=recipe.to_dict(),
        notes=(*_notes(records), *_sparse_notes(records), *drifts),
        sparsity=_sparsity(records),
    )


def _variant(
    records: Records,
    latency: dict[str, dict[str, Percentiles]],
    reduction: float,
    *,
    name: str,
    engine: Engine | None = None,
) -> Variant:
    pruned = not name.startswith("dense")
    metrics = records["engine-eval"][name]["metrics"] if engine else records[f"{name}-eval"]
    runtime = engine.backend if engine else "torch"
    precision = engine.precision if engine else "fp32"
    cost = records["prune"]["flops_after" if pruned else "flops_before"]
    times = latency.get(name)
    dense = latency.get({"torch": "dense"}.get(runtime, f"dense-{runtime}-{precision}"))
    emulated = runtime == "onnxruntime" and precision == "fp16"
    title = f"{'pruned' if pruned else 'dense'}, {_RUNTIME_TITLES[runtime]}"
    return Variant(
        title=f"{title} {precision}" if engine else title,
        runtime=runtime,
        precision=precision,
        pruned=pruned,
        mAP=metrics["mAP"],
        NDS=metrics["NDS"],
        gflops=cost["total"] / 1e9,
        gflops_real=cost["total_real"] / 1e9,
        params=records["prune"]["params_after" if pruned else "params_before"],
        latency_ms=times,
        realised_share=realised(dense[FRAME].p50, times[FRAME].p50, reduction) if pruned and times and dense else None,
        note=EMULATED if emulated else "",
        mIoU=metrics.get("mIoU"),
    )


def _latencies(bench: dict[str, Any]) -> dict[str, dict[str, Percentiles]]:
    return {
        name: {
            part: Percentiles(p50=times["p50"], p90=times["p90"], p99=times["p99"])
            for part, times in found["latency_ms"].items()
            if part != PROCESSOR
        }
        for name, found in bench["variants"].items()
    }


def _shares(latency: dict[str, dict[str, Percentiles]], reduction: float) -> RealisedShare:
    dense, pruned = latency["dense-onnxruntime-fp32"], latency["onnxruntime-fp32"]
    return RealisedShare(
        frame=realised(dense[FRAME].p50, pruned[FRAME].p50, reduction),
        graphs=realised(graph_p50(dense), graph_p50(pruned), reduction),
    )


def _parity(records: Records, engine: Engine) -> Parity:
    evaluated = records["engine-eval"][engine.variant]
    yardstick = records["dense-eval" if engine.bundle_step == "export-dense" else "pruned-eval"]
    exported = records["export-dense" if engine.bundle_step == "export-dense" else "export"]
    graphs = exported[engine.precision] if engine.backend == "onnxruntime" else {"stages": {}, "frame": None}
    return Parity(
        stages={name: Difference(**found) for name, found in graphs["stages"].items()},
        frame=Difference(**graphs["frame"]) if graphs["frame"] else None,
        boxes=BoxParity(**evaluated["boxes"], mAP_difference=evaluated["metrics"]["mAP"] - yardstick["mAP"]),
    )


def _engines(recipe: Recipe, record: dict[str, Any], bundle: str) -> Engines:
    target, precision = recipe.engine.target, recipe.engine.precision
    if record["state"] == "built":
        held = ", ".join(record["precisions"])
        built = tuple(record["engines"])
        return Engines(status="built", line=f"engines: built here, TensorRT {held}", target=target, built=built)
    line = f"engines: not built here ({record['reason']}); the {precision} graphs were checked on ONNX Runtime"
    return Engines(status=record["state"], line=line, command=f"altermoma build {bundle}", target=target)


def _channels(pruned: dict[str, Any]) -> tuple[LayerWidth, ...]:
    return tuple(
        LayerWidth(
            partition=pruned["partitions"][layer], layer=layer, before=before, after=pruned["widths_after"][layer]
        )
        for layer, before in pruned["widths_before"].items()
    )


def _data(recipe: Recipe, record: dict[str, Any]) -> dict[str, Any]:
    world = "the synthetic world" if record["synthetic"] else f"{recipe.data.root} ({record['version']})"
    return {"title": f"{record['val_frames']} validation frames of {world}", **record}


def _device(conditions: dict[str, Any]) -> str:
    return f"{conditions['processor']}, threads: {conditions['threads']}"


def _notes(records: Records) -> tuple[str, ...]:
    findings = {finding for precision in records["export"].values() for finding in precision["findings"]}
    return (
        *busy(records["bench"]["conditions"]),
        *([latency_line(records["prune"][LATENCY])] if LATENCY in records["prune"] else []),
        *int8_notes(records["export"]),
        *(f"lint: {finding}" for finding in sorted(findings)),
    )


def int8_notes(export: dict[str, Any]) -> tuple[str, ...]:
    """How much of the model is int8, and what each stage keeps of its signal."""
    if "int8" not in export:
        return ()
    record = export["int8"]
    stages = ", ".join(f"{stage} {share:.0%}" for stage, share in record["int8_macs_by_stage"].items())
    worst = ", ".join(f"{stage} {min(db.values()):.0f} dB" for stage, db in record["signal_db"]["tensorrt"].items())
    notes = [
        f"int8: {record['int8_macs']:.0%} of the multiply-adds ({stages}); signal to noise of each stage in TensorRT's "
        f"graphs: {worst}"
    ]
    if SEARCH in record:
        notes.append(_search_note(record[SEARCH]))
    return tuple(notes)


def _search_note(found: dict[str, Any]) -> str:
    ranking, left_out = found["ranking"], found["left_out"]
    worst = ", ".join(f"{harm['group']} {-harm['alone']:+.2f}" for harm in ranking[:3])
    return (
        f"int8 was searched among {len(ranking)} layer groups: mAP {100 * found['map_fp32']:.2f} in fp32, "
        f"{100 * found['map_int8']:.2f} in int8 (the worse of both runtimes' graphs); left out: "
        f"{', '.join(left_out) or 'none'}; the most harmful, alone in int8: {worst}. All of them are in the bundle's "
        f"{SENSITIVITY_FILE}"
    )


def _sparsity(records: Records) -> SparseProducts:
    report, kept = records["export"]["fp32"]["sparsity"], records["prune"].get(SPARSITY, {})
    return SparseProducts(**{**report, **kept, "layers": tuple(Product(**layer) for layer in report["layers"])})


def _sparse_notes(records: Records) -> tuple[str, ...]:
    found = _sparsity(records)
    if found.asked == "dense":
        return ()
    return (
        f"2:4 weights in products of {found.two_four_flops:.1%} of the FLOPs; ONNX Runtime computes them like dense "
        "ones: only TensorRT has sparse kernels, and picks them where they are faster",
    )


def drift(engine: Engine, boxes: BoxParity, allowed: ParityRecipe) -> tuple[str, ...]:
    """A line where an engine's answers leave torch's: fp32 box by box, lower precisions in mAP."""
    if engine.precision == "fp32":
        fine = boxes.matched == 1.0 and boxes.max_difference <= allowed.fp32_boxes
    else:
        limit = allowed.int8_map if engine.precision == "int8" else allowed.fp16_map
        fine = abs(boxes.mAP_difference) <= limit
    if fine:
        return ()
    return (
        f"{engine.variant} drifts from torch: {boxes.matched:.1%} of the boxes found, at most "
        f"{boxes.max_difference:.2g} apart, mAP {100 * boxes.mAP_difference:+.2f} points",
    )


def _beyond(drifts: list[str], allowed: ParityRecipe) -> ExportError:
    return ExportError(
        "engines do not answer as torch does over the validation split:\n  " + "\n  ".join(drifts),
        expected=f"fp32: all boxes, at most {allowed.fp32_boxes:g} apart; "
        f"fp16: mAP within {100 * allowed.fp16_map:g} points, int8: within {100 * allowed.int8_map:g}",
        remedy="name the layers that lose precision in fp32_nodes of the stage contract, or export fp32; to have the "
        'bundle all the same, set beyond = "note" below [parity] in the recipe and give the same --out again: what is '
        "done is kept",
    )


def busy(conditions: dict[str, Any]) -> tuple[str, ...]:
    """A warning where other processes wanted the processors during the timing; one's own threads are no others."""
    load, processors = conditions.get("load_1min"), conditions.get("cpus")
    if load is None or not processors or load <= BUSY * processors:
        return ()
    return (f"the machine was busy while latencies were taken (load {load} on {processors} processors): time again",)
