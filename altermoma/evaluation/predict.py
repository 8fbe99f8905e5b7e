"""Detections of a whole data set, by a torch model or by anything that maps graph inputs to head outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from altermoma.data.dataset import FrameDataset, prefetch
from altermoma.data.map_masks import MAP_TRUTH
from altermoma.errors import DataError
from altermoma.evaluation.map_eval import MapIou, MapScores
from altermoma.frames import Boxes
from altermoma.geometry import Geometry
from altermoma.ops.decode import decode, decode_map
from altermoma.progress import track

if TYPE_CHECKING:
    import torch

    from altermoma.models.batch import FrameBatch
    from altermoma.models.fusion import FusionModel

Arrays = Mapping[str, NDArray[np.generic]]
Run = Callable[[dict[str, NDArray[np.generic]]], Arrays]
Masked = Literal["none", "camera", "lidar"]
BATCH_SIZE = 4


def predict_with(run: Run, dataset: FrameDataset, *, score_threshold: float = 0.0) -> dict[str, Boxes]:
    """Detections by sample token from a frame-wise backend; see `detect_with`."""
    return dict(detect_with(run, dataset, score_threshold=score_threshold))


def detect_with(
    run: Run, dataset: FrameDataset, *, score_threshold: float = 0.0, start: int = 0, description: str = "Detecting"
) -> Iterator[tuple[str, Boxes]]:
    """Sample token and detections, frame by frame, from a frame-wise backend.

    Args:
        run: graph inputs of one frame to head outputs with a batch axis of 1, as `ops.decode.decode` reads them.
        dataset: frames, taken as they are, without augmentation.
        score_threshold: boxes at or below it are left out; 0 for mAP.
        start: the first frame.
        description: of the progress bar.
    """
    rest = range(start, len(dataset))
    for sample in track(prefetch(dataset[index] for index in rest), description, total=len(rest)):
        (boxes,) = decode(run(sample.inputs), dataset.geometry, score_threshold)
        yield sample.token, boxes


def predict(
    model: FusionModel,
    dataset: FrameDataset,
    *,
    masked: Masked = "none",
    batch_size: int = BATCH_SIZE,
) -> dict[str, Boxes]:
    """Detections by sample token from a torch model; see `detect`."""
    return dict(detect(model, dataset, masked=masked, batch_size=batch_size))


def detect(
    model: FusionModel,
    dataset: FrameDataset,
    *,
    masked: Masked = "none",
    batch_size: int = BATCH_SIZE,
    start: int = 0,
) -> Iterator[tuple[str, Boxes]]:
    """Sample token and detections, frame by frame, from a torch model in eval mode, on the device of its weights.

    Args:
        model: left in the mode it came in.
        dataset: frames, taken as they are, without augmentation.
        masked: the branch that is replaced by zeros.
        batch_size: frames per forward pass; does not change the result beyond rounding.
        start: the first frame.
    """
    import torch

    from altermoma.models.devices import device_of
    from altermoma.models.modes import eval_mode

    device = device_of(model)
    firsts = range(start, len(dataset), batch_size)
    with eval_mode(model):
        for tokens, batch in track(prefetch(_joined(dataset, firsts, device)), "Detecting", total=len(firsts)):
            with torch.inference_mode():
                boxes = decode(head_arrays(model(batch.to(device), masked=masked)), dataset.geometry)
            yield from zip(tokens, boxes, strict=True)


def run_torch(model: FusionModel, geometry: Geometry) -> Run:
    """A torch model as a frame-wise backend; see `detect_with`."""
    import torch

    from altermoma.models.batch import collate
    from altermoma.models.devices import device_of
    from altermoma.models.modes import eval_mode

    device = device_of(model)

    def run(inputs: dict[str, NDArray[np.generic]]) -> Arrays:
        with eval_mode(model), torch.inference_mode():
            return head_arrays(model(collate([inputs], geometry).to(device)))

    return run


def score_map(run: Run, dataset: FrameDataset) -> MapScores:
    """IoU of the map head on frames that carry masks, from a frame-wise backend."""
    counter = MapIou()
    for sample in track(prefetch(iter(dataset)), "Segmenting", total=len(dataset)):
        found = decode_map(run(sample.inputs))
        if found is None:
            raise DataError("no map among the outputs", expected="a model with a map head")
        counter.add(found[0], sample.inputs[MAP_TRUTH][0] != 0)
    return counter.scores()


def head_arrays(outputs: Any) -> dict[str, NDArray[np.generic]]:
    """`altermoma.models.head.HeadOutputs` as numpy arrays by field name."""
    fields = dataclasses.fields(outputs)
    return {field.name: getattr(outputs, field.name).detach().cpu().numpy() for field in fields}


def _joined(dataset: FrameDataset, firsts: range, device: torch.device) -> Iterator[tuple[list[str], FrameBatch]]:
    """Tokens and inputs of several frames at a time; for a GPU in memory that it reads by itself."""
    from altermoma.models.batch import collate

    for first in firsts:
        samples = [dataset[index] for index in range(first, min(first + firsts.step, len(dataset)))]
        batch = collate([sample.inputs for sample in samples], dataset.geometry)
        yield [sample.token for sample in samples], batch.pinned(device) if device.type == "cuda" else batch
