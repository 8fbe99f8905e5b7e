"""A stage on a deep-learning accelerator (DLA): refused where it cannot be, and never moved to the GPU without a word.

A DLA computes in fp16 and int8, on tensors of fixed sizes, and knows convolutions, pooling, element-wise sums and the
like. It has no gathers, reductions or normalisations (NVIDIA/Deep-Learning-Accelerator-SW, operators), so the view and
LiDAR stages, which are gathers over tables of a frame's size, stay on the GPU.
"""

from __future__ import annotations

from typing import Any

from altermoma.deploy.manifest import StageRecord
from altermoma.deploy.tensorrt_api import member, version_of
from altermoma.deploy.tensorrt_config import BuildOptions
from altermoma.errors import EngineError
from altermoma.progress import say

_FOLDED = ("CONSTANT", "SHAPE")
"""Layers that become part of others or of the plan; asking where they run means nothing."""

_SHOWN = 12
_KEEP = "leave the stage out of dla_stages: it then runs on the GPU"


def place_on_dla(trt: Any, builder: Any, network: Any, config: Any, stage: StageRecord, options: BuildOptions) -> int:
    """Sends a stage's layers to the accelerator where that was asked for.

    Returns:
        How many layers the accelerator lacks; they run on the GPU.

    Raises:
        EngineError: no such accelerator, a precision or sizes that it does not compute, or layers that it lacks where
            `gpu_fallback` was not asked for.
    """
    if not options.on_dla(stage.name):
        return 0
    core = options.builder.dla_core
    _require_possible(trt, builder, stage, options)
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    if options.builder.gpu_fallback:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    folded = {member(trt.LayerType, name) for name in _FOLDED}
    lacking = [layer for layer in layers if layer.type not in folded and not config.can_run_on_DLA(layer)]
    if not lacking:
        return 0
    told = _told(lacking, len(layers))
    if not options.builder.gpu_fallback:
        raise EngineError(
            f"stage {stage.name}: DLA core {core} cannot run {told}",
            expected="layers that the accelerator has",
            remedy=f"{_KEEP}; or ask for gpu_fallback, which runs these layers on the GPU",
        )
    if len(lacking) == sum(layer.type not in folded for layer in layers):
        raise EngineError(
            f"stage {stage.name}: DLA core {core} can run none of its layers",
            expected="a stage of convolutions in fp16 or int8",
            remedy=_KEEP,
        )
    say(f"stage {stage.name}: these run on the GPU, as DLA core {core} lacks them: {told}")
    return len(lacking)


def _require_possible(trt: Any, builder: Any, stage: StageRecord, options: BuildOptions) -> None:
    cores, core = int(builder.num_DLA_cores), options.builder.dla_core
    if core >= cores:
        held = f"{cores} DLA cores" if cores else "no DLA"
        raise EngineError(
            f"stage {stage.name} was asked for on DLA core {core}; TensorRT {trt.__version__} finds {held} here",
            expected="an Orin with a TensorRT that supports its DLA (up to 10.7, and 11.4.1)",
            remedy=_KEEP,
        )
    if options.precision == "fp32":
        raise EngineError(
            f"stage {stage.name} was asked for on DLA in fp32",
            expected="fp16 or int8, which are all that a DLA computes",
            remedy="build with --engine fp16, or " + _KEEP,
        )
    if options.precision == "int8" and version_of(trt) < (10, 0):
        raise EngineError(
            f"stage {stage.name} was asked for on DLA in int8; TensorRT {trt.__version__} takes no Q/DQ pairs there",
            expected="fp16 on DLA: 8.x knows int8 only by calibration tables, which later versions lack",
            remedy="build with --engine fp16, or " + _KEEP,
        )
    dynamic = [spec.name for spec in stage.inputs if stage.dynamic(spec)]
    if dynamic:
        raise EngineError(
            f"stage {stage.name} was asked for on DLA, but {', '.join(dynamic[:_SHOWN])} vary in size",
            expected="a stage of fixed sizes: camera, fusion or head",
            remedy=_KEEP,
        )


def _told(lacking: list[Any], total: int) -> str:
    named = ", ".join(f"{layer.name} ({getattr(layer.type, 'name', layer.type)})" for layer in lacking[:_SHOWN])
    more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
    return f"{len(lacking)} of {total} layers: {named}{more}"
