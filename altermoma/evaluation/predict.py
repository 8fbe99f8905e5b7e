"""Detections of a whole data set, by a torch model or by anything that maps graph inputs to head outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from altermoma.data.dataset import FrameDataset, Sample, prefetch
from altermoma.frames import Boxes
from altermoma.ops.decode import decode
from altermoma.progress import track

if TYPE_CHECKING:
    from altermoma.models.fusion import FusionModel

Arrays = Mapping[str, NDArray[np.generic]]


def predict_with(
    run: Callable[[dict[str, NDArray[np.generic]]], Arrays],
    dataset: FrameDataset,
    *,
    score_threshold: float = 0.0,
    description: str = "Detecting",
) -> dict[str, Boxes]:
    """Detections by sample token from a frame-wise backend.

    Args:
        run: graph inputs of one frame to head outputs with a batch axis of 1, as `ops.decode.decode` reads them.
        dataset: frames, taken as they are, without augmentation.
        score_threshold: boxes at or below it are left out; 0 for mAP.
        description: of the progress bar.
    """
    found = {}
    for sample in track(prefetch(iter(dataset)), description, total=len(dataset)):
        (found[sample.token],) = decode(run(sample.inputs), dataset.geometry, score_threshold)
    return found


def predict(
    model: FusionModel,
    dataset: FrameDataset,
    *,
    masked: Literal["none", "camera", "lidar"] = "none",
    batch_size: int = 4,
    threads: int | None = None,
    description: str = "Detecting",
) -> dict[str, Boxes]:
    """Detections by sample token from a torch model, in evaluation mode, on the device of its weights.

    Args:
        model: left in the mode it came in.
        dataset: frames, taken as they are, without augmentation.
        masked: the branch that is replaced by zeros.
        batch_size: frames per forward pass; does not change the result beyond rounding.
        threads: torch threads meanwhile; None leaves them.
        description: of the progress bar.
    """
    import torch

    from altermoma.models.batch import collate

    device = next(model.parameters()).device
    found: dict[str, Boxes] = {}
    steps = -(-len(dataset) // batch_size)
    with _evaluating(model, threads), torch.inference_mode():
        for samples in track(prefetch(_groups(dataset, batch_size)), description, total=steps):
            batch = collate([sample.inputs for sample in samples], dataset.geometry).to(device)
            boxes = decode(head_arrays(model(batch, masked=masked)), dataset.geometry)
            found |= {sample.token: frame for sample, frame in zip(samples, boxes, strict=True)}
    return found


def head_arrays(outputs: Any) -> dict[str, NDArray[np.generic]]:
    """`altermoma.models.head.HeadOutputs` as numpy arrays by field name."""
    fields = dataclasses.fields(outputs)
    return {field.name: getattr(outputs, field.name).detach().cpu().numpy() for field in fields}


def _groups(dataset: FrameDataset, size: int) -> Iterator[list[Sample]]:
    for start in range(0, len(dataset), size):
        yield [dataset[index] for index in range(start, min(start + size, len(dataset)))]


@contextmanager
def _evaluating(model: FusionModel, threads: int | None) -> Iterator[None]:
    import torch

    modes, before = [(part, part.training) for part in model.modules()], torch.get_num_threads()
    model.eval()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        torch.set_num_threads(before)
