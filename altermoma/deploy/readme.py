"""The README of a bundle: the same engines with the vendor's own tools, stage by stage."""

from __future__ import annotations

from altermoma.deploy.manifest import Manifest, StageRecord
from altermoma.deploy.reference import Reference
from altermoma.deploy.tensorrt_api import OLDEST
from altermoma.deploy.tensorrt_config import built_for
from altermoma.deploy.vendor_commands import FEED_FILE, MAJORS, SHARING, StageCommands

_INT8 = (
    "",
    "No verdict of polygraphy on the numbers here: it bounds the largest difference, and of a million rounded numbers",
    "some are always far off, in engines that are right. These commands tell whether a stage runs and whether all that",
    "it gives is finite (`--validate`), and no more. Whether an engine computes the right numbers, `altermoma build`",
    "tells: by noise over signal and gain of every output, held to what was measured of this very graph at the export.",
)
"""Stands before the int8 stages."""


def bundle_readme(manifest: Manifest, reference: Reference) -> str:
    """Markdown with exact commands per precision, stage and TensorRT version, to be run inside the bundle folder."""
    majors = majors_of(manifest)
    lines = [
        f"# {manifest.name}",
        "",
        f"A camera-LiDAR detector for {len(manifest.class_names)} classes, exported by altermoma"
        f" {manifest.versions.get('altermoma', '')}. Precisions: {', '.join(manifest.precisions)}.",
        "`manifest.json` describes every input and output and holds the SHA-256 of every file.",
        "",
        "With altermoma (no torch, no onnx), where this folder lies:",
        "",
        "    altermoma build BUNDLE        # builds and verifies TensorRT engines for this machine",
        "",
        "    from altermoma.deploy import Pipeline",
        '    pipeline = Pipeline.from_bundle("BUNDLE")',
        "    detections = pipeline(cameras_vhw3, points_p5, calibration)",
        "",
        "The commands below need only the vendor's tools. They are run in this folder, after",
        "",
        f"    python {FEED_FILE}",
        "",
        "which writes the reference frame into `engines/by-hand/` as these tools read it. polygraphy holds every",
        "output against the bundle's own, within the tolerance of the manifest, on ONNX Runtime and, with `--trt`, on",
        "TensorRT; where it says FAILED, do not drive with it (of the head see the end, of int8 its chapter). trtexec",
        "builds, and runs the frame for its time alone. Its plans are for programs of your own:",
        "`Pipeline` runs those of `altermoma build`, which were checked against this bundle, and no others.",
    ]
    for precision, stages in manifest.stages.items():
        lines += ["", f"## {precision}", *(_INT8 if precision == "int8" else ())]
        for record in stages.values():
            commands = commands_of(manifest, reference, precision, record)
            lines += ["", f"### {record.name}", "", *_tensors(record), "", f"    {commands.polygraphy()}"]
            for major in majors:
                lines += ["", f"TensorRT {major}:", ""]
                lines += [f"    {commands.polygraphy(major)}", f"    {commands.trtexec(major)}"]
    lines += ["", *_notes(manifest), ""]
    return "\n".join(lines)


def majors_of(manifest: Manifest) -> tuple[int, ...]:
    """Major versions of TensorRT that these graphs were checked for: the target's and later ones."""
    oldest = built_for(manifest) or OLDEST
    return tuple(major for major in MAJORS if major >= oldest[0])


def commands_of(manifest: Manifest, reference: Reference, precision: str, record: StageRecord) -> StageCommands:
    """What builds and checks one stage by hand."""
    return StageCommands(
        record=record,
        precision=precision,
        sparsity=str(manifest.recipe.get("engine", {}).get("sparsity", "dense")),
        tensors={**reference.host, **reference.tensors},
        tolerance=manifest.tolerances[precision],
        oldest=built_for(manifest) or OLDEST,
    )


def _notes(manifest: Manifest) -> list[str]:
    notes = [
        "The precision is written into these graphs. On TensorRT 8 `--fp16` lets the builder round what the graph"
        " computes in fp32, box coordinates among it: `altermoma build` binds every layer to the graph's precision and"
        " checks the engine. On 10 the graph's types are binding with `--stronglyTyped`, on 11 always.",
        "",
        "In the head, proposals whose scores nearly tie may change places from one runtime to another; polygraphy then"
        " says FAILED for that stage, `altermoma build` compares them in the order of their places.",
    ]
    oldest = built_for(manifest) or OLDEST
    if oldest[0] == 8:
        notes += ["", *_contexts(oldest)]
    if oldest == (8, 5):
        notes += ["", "On 8.5 the engine is built without being run by `--buildOnly` in place of `--loadInputs`."]
    return notes


def _contexts(oldest: tuple[int, int]) -> list[str]:
    """What a program of one's own may do with an 8.x engine whose shapes change."""
    if oldest >= (8, 6):
        return [
            f"`{SHARING}` lets several execution contexts of an 8.6 engine live on its one profile, one for each CUDA"
            " graph, as `altermoma build` has it; from 10 on that is always so."
        ]
    return [
        "On 8.5 only one execution context of an engine whose shapes change can live at a time. On 8.6 several can"
        f" where such a stage is built with `{SHARING}` added to its trtexec command, which 8.5 does not know;"
        " `altermoma build` sets it by itself."
    ]


def _tensors(record: StageRecord) -> list[str]:
    rows = ["| tensor | dtype | shape | meaning |", "|---|---|---|---|"]
    for kind, specs in (("in", record.inputs), ("out", record.outputs)):
        for spec in specs:
            unit = f" ({spec.unit})" if spec.unit else ""
            shape = " x ".join(map(str, spec.shape))
            rows.append(f"| {kind} `{spec.name}` | {spec.dtype} | {shape} | {spec.meaning}{unit} |")
    return rows
