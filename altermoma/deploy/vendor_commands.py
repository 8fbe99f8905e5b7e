"""The exact commands that build and check a stage with trtexec and polygraphy, for each major version of TensorRT.

trtexec: samples/common/sampleOptions.cpp of NVIDIA/TensorRT at its release tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from altermoma.deploy.manifest import StageRecord, TensorSpec
from altermoma.deploy.stage_io import Arrays
from altermoma.deploy.tensorrt_api import OLDEST
from altermoma.deploy.vendor_feed import PLACE

FEED_FILE = "reference/feed.py"
MAJORS = (8, 10, 11)
SHARING = "--preview=+profileSharing0806"
"""Several contexts on one profile: a choice on 8.6 alone. 8.5 lacks it and refuses the option, from 10 on it is so."""


@dataclass(frozen=True, kw_only=True)
class StageCommands:
    """Commands of one stage at one precision, to be run in the bundle's folder.

    Attributes:
        record: contract of the stage.
        sparsity: "dense" or "2:4".
        tensors: of the reference frame, for the sizes of dynamic axes and the magnitudes of outputs; those it lacks
            are taken at their tuned size.
        tolerance: largest difference over the largest magnitude.
        oldest: TensorRT version (major, minor) that the graphs were checked for.
    """

    record: StageRecord
    precision: str
    sparsity: str
    tensors: Arrays
    tolerance: float
    oldest: tuple[int, int] = OLDEST

    def trtexec(self, major: int) -> str:
        """Builds an engine and runs it once with the reference inputs.

        Where the graphs are for 8.6, the engine lets several contexts share its profile, as `altermoma build` has it.
        """
        record = self.record
        parts = ["trtexec", f"--onnx={record.file}", f"--saveEngine={PLACE}/{record.name}.{self.precision}.plan"]
        for which in ("min", "opt", "max") if self._dynamic() else ():
            parts.append(f"--{which}Shapes={self._shapes(which)}")
        parts += _trtexec_precision(self.precision, major)
        if self.sparsity == "2:4":
            parts.append("--sparsity=enable")
        if major == 8 and self.oldest >= (8, 6) and self._dynamic():
            parts.append(SHARING)
        if self._dynamic():
            parts.append(f"--shapes={self._shapes('frame')}")
        files = ",".join(f"{spec.name}:{PLACE}/{spec.name}.{np.dtype(spec.dtype)}.bin" for spec in record.inputs)
        return " ".join([*parts, f"--loadInputs={files}"])

    def polygraphy(self, major: int | None = None) -> str:
        """Runs the graph on ONNX Runtime, and with a major version on TensorRT as well; holds all against the bundle's
        outputs. Of int8 it tells on one of them alone whether all is finite: polygraphy bounds the largest difference,
        which says nothing of rounded numbers.
        """
        record, rounded = self.record, self.precision == "int8"
        parts = ["polygraphy", "run", record.file, *([] if rounded and major is not None else ["--onnxrt"])]
        if major is not None:
            parts += ["--trt", *_polygraphy_precision(self.precision, major)]
            parts += ["--sparse-weights"] if self.sparsity == "2:4" else []
            for which in ("min", "opt", "max") if self._dynamic() else ():
                parts += [f"--trt-{which}-shapes", *self._bracketed(which)]
        loader = f"{FEED_FILE}:{record.name}_{self.precision}"
        parts += ["--data-loader-script", loader]
        if rounded:
            return " ".join([*parts, "--validate"])
        parts += ["--load-outputs", f"{PLACE}/{record.name}_{self.precision}.json"]
        limits = [f"{name}:{limit:.3g}" for name, limit in self.limits().items()]
        return " ".join([*parts, "--rtol", "0", "--atol", *limits])

    def limits(self) -> dict[str, float]:
        """Largest absolute difference allowed for each output; not for int8."""
        found = {}
        for spec in self.record.outputs:
            values = self.tensors.get(spec.name)
            largest = 1.0 if values is None else float(np.abs(values.astype(np.float64)).max(initial=0.0))
            found[spec.name] = max(self.tolerance * largest, 1e-12)
        return found

    def _dynamic(self) -> list[TensorSpec]:
        return [spec for spec in self.record.inputs if self.record.dynamic(spec)]

    def _sizes(self, spec: TensorSpec, which: Literal["min", "opt", "max", "frame"]) -> tuple[int, ...]:
        if which == "frame" and spec.name in self.tensors:
            return tuple(self.tensors[spec.name].shape)
        return self.record.sizes(spec, "opt" if which == "frame" else which)

    def _shapes(self, which: Literal["min", "opt", "max", "frame"]) -> str:
        return ",".join(f"{spec.name}:{'x'.join(map(str, self._sizes(spec, which)))}" for spec in self._dynamic())

    def _bracketed(self, which: Literal["min", "opt", "max", "frame"]) -> list[str]:
        return [f"'{spec.name}:[{','.join(map(str, self._sizes(spec, which)))}]'" for spec in self._dynamic()]


def _trtexec_precision(precision: str, major: int) -> list[str]:
    """On 8.x a permission, on 10 the graph's own types by request, on 11 always the graph's own."""
    if precision == "fp32":
        return ["--noTF32"] + (["--stronglyTyped"] if major == 10 else [])
    if major == 8:
        return ["--fp16"] + (["--int8"] if precision == "int8" else [])
    return ["--stronglyTyped"] if major == 10 else []


def _polygraphy_precision(precision: str, major: int) -> list[str]:
    """polygraphy leaves TF32 off by itself."""
    if major == 8:
        return {"fp32": [], "fp16": ["--fp16"], "int8": ["--fp16", "--int8"]}[precision]
    return ["--strongly-typed"] if major == 10 else []
