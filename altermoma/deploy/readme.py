"""The README of a bundle: the same engines with the vendor's own tools, stage by stage."""

from __future__ import annotations

from typing import Literal

from altermoma.deploy.manifest import Manifest, StageRecord


def bundle_readme(manifest: Manifest) -> str:
    """Markdown with exact commands per precision and stage, to be run inside the bundle folder."""
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
        "The commands below need only the vendor's tools. The inputs that these make up are zeros and ones, so they",
        "check that a graph builds and runs alike on both runtimes, not its accuracy.",
    ]
    for precision, stages in manifest.stages.items():
        lines += ["", f"## {precision}"]
        for record in stages.values():
            lines += ["", f"### {record.name}", "", *_tensors(record), ""]
            lines += [f"    {polygraphy_command(record)}", f"    {polygraphy_command(record, trt=True)}"]
            lines += [f"    {trtexec_command(record, precision)}"]
    lines += ["", _PRECISION_NOTE, ""]
    return "\n".join(lines)


_PRECISION_NOTE = (
    "The precision is written into these graphs. On TensorRT 10 write `--stronglyTyped` in place of `--fp16`; on 11"
    " leave both out. On 8.x `--fp16` lets trtexec round what the graph computes in fp32, box coordinates among it:"
    " `altermoma build` binds every layer to the graph's precision and checks the engine."
    " For fp32 add `--noTF32` where full precision is wanted."
)


def trtexec_command(record: StageRecord, precision: str) -> str:
    """Builds one stage with plain trtexec (spelling of TensorRT 8.x)."""
    parts = ["trtexec", f"--onnx={record.file}", f"--saveEngine={record.name}.{precision}.plan"]
    dynamic = [spec for spec in record.inputs if record.dynamic(spec)]
    bounds: tuple[Literal["min", "opt", "max"], ...] = ("min", "opt", "max")
    for which in bounds if dynamic else ():
        shapes = ",".join(f"{spec.name}:{'x'.join(map(str, record.sizes(spec, which)))}" for spec in dynamic)
        parts.append(f"--{which}Shapes={shapes}")
    if precision in {"fp16", "int8"}:
        parts.append("--fp16")
    if precision == "int8":
        parts.append("--int8")
    return " ".join(parts)


def polygraphy_command(record: StageRecord, *, trt: bool = False) -> str:
    """Runs one stage on ONNX Runtime, and against TensorRT where asked."""
    parts = ["polygraphy", "run", record.file, "--onnxrt"]
    if trt:
        parts.append("--trt")
    shapes = [
        f"'{spec.name}:{_bracketed(record.sizes(spec, 'opt'))}'" for spec in record.inputs if record.dynamic(spec)
    ]
    if shapes:
        parts += ["--input-shapes", *shapes]
    return " ".join(parts)


def _bracketed(sizes: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, sizes)) + "]"


def _tensors(record: StageRecord) -> list[str]:
    rows = ["| tensor | dtype | shape | meaning |", "|---|---|---|---|"]
    for kind, specs in (("in", record.inputs), ("out", record.outputs)):
        for spec in specs:
            unit = f" ({spec.unit})" if spec.unit else ""
            shape = " x ".join(map(str, spec.shape))
            rows.append(f"| {kind} `{spec.name}` | {spec.dtype} | {shape} | {spec.meaning}{unit} |")
    return rows
