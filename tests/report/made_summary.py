"""A summary as a finished run leaves it, for tests of what reads one."""

from __future__ import annotations

from altermoma.deploy.pipeline import PARTS
from altermoma.report.summary import (
    BoxParity,
    Difference,
    Engines,
    LayerWidth,
    Parity,
    Percentiles,
    RealisedShare,
    Summary,
    Variant,
)


def latency(factor: float) -> dict[str, Percentiles]:
    parts = {part: Percentiles(p50=factor, p90=factor * 1.25, p99=factor * 1.5) for part in PARTS}
    total = factor * len(PARTS)
    return {**parts, "frame": Percentiles(p50=total, p90=total * 1.25, p99=total * 1.5)}


def variant(title: str, *, pruned: bool, factor: float | None) -> Variant:
    return Variant(
        title=title,
        runtime="onnxruntime" if "ONNX" in title else "torch",
        precision="fp16" if "fp16" in title else "fp32",
        pruned=pruned,
        mAP=0.5311 if pruned else 0.5377,
        NDS=0.571,
        gflops=4.0 if pruned else 8.0,
        gflops_real=3.1 if pruned else 6.2,
        params=700_123 if pruned else 1_400_321,
        latency_ms=latency(factor) if factor is not None else None,
        realised_share=0.87 if pruned and factor is not None else None,
        note="" if factor is not None else "emulated",
    )


def make_summary() -> Summary:
    variants = {
        "dense": variant("dense, torch", pruned=False, factor=40.0),
        "pruned": variant("pruned, torch", pruned=True, factor=24.0),
        "dense-onnxruntime-fp32": variant("dense, ONNX Runtime fp32", pruned=False, factor=30.0),
        "onnxruntime-fp32": variant("pruned, ONNX Runtime fp32", pruned=True, factor=17.0),
        "onnxruntime-fp16": variant("pruned, ONNX Runtime fp16", pruned=True, factor=None),
    }
    close = Difference(max=2e-6, mean=1e-7, scaled_max=1e-6, cosine=0.9999999)
    boxes = BoxParity(
        frames=40, boxes=812, matched=1.0, max_difference=2e-5, max_score_difference=1e-6, mAP_difference=0.0
    )
    return Summary(
        name="half & half",
        model="bevfusion-tiny",
        data={"title": "40 validation frames of the synthetic world", "version": "v1.0-mini", "val_frames": 40},
        variants=variants,
        flops_reduction=0.5,
        realised_share=RealisedShare(frame=0.87, graphs=0.93),
        parity={
            name: Parity(stages={"camera": close, "head": close}, frame=close, boxes=boxes)
            for name in ("onnxruntime-fp32", "onnxruntime-fp16")
        },
        engines=Engines(
            status="not built here",
            line="engines: not built here (no GPU); the fp16 graphs were checked on ONNX Runtime",
            command="altermoma build runs/half/bundle",
            target="generic",
        ),
        channels=(
            LayerWidth(partition="camera", layer="img_backbone.conv1", before=32, after=16),
            LayerWidth(partition="lidar", layer="pts_middle_encoder.conv_input.0", before=16, after=16),
        ),
        versions={"altermoma": "0.1.0+abc", "torch": "2.13.0"},
        device="a processor, threads: 1",
        seconds={"data": 40.0, "finetune": 90.0, "total": 130.0},
        peak_memory_mib=2011.5,
        recipe={"name": "half"},
        notes=("lint: something to know",),
    )
