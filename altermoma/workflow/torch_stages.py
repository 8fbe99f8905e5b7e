"""The torch model as stages of the deployment pipeline: torch and engines are timed over the same whole frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from altermoma.deploy.manifest import StageRecord, TensorSpec
from altermoma.deploy.pipeline import Pipeline
from altermoma.deploy.stage_io import Arrays
from altermoma.models.stages import StageModule, stage_modules

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel


class TorchStage:
    """One stage module behind the interface of an engine."""

    def __init__(self, name: str, module: StageModule, output_shapes: dict[str, tuple[int, ...]]) -> None:
        self._module = module
        outputs = tuple(TensorSpec(name=key, dtype="float32", shape=shape) for key, shape in output_shapes.items())
        self.record = StageRecord(name=name, file="", inputs=(), outputs=outputs)

    def run(self, inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            fed = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._module.inputs]
            outputs = self._module(*fed)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: value.numpy() for name, value in zip(self._module.outputs, outputs, strict=True)}


def torch_pipeline(model: FusionModel) -> Pipeline:
    """A pipeline whose stages run in torch on the CPU."""
    x, y = model.config.geometry.fused_shape
    shapes: dict[str, dict[str, tuple[int, ...]]] = {"lidar": {"lidar_bev": (1, model.lidar_channels, x, y)}}
    runners = {
        name: TorchStage(name, module.eval(), shapes.get(name, {})) for name, module in stage_modules(model).items()
    }
    return Pipeline(model.config.geometry, runners)
