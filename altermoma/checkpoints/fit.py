"""Whether weights are those of a model: names and shapes, reported stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from altermoma.errors import CheckpointError
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import PRESETS

_STAGES = {
    "img_backbone": "camera backbone",
    "img_neck": "camera neck",
    "view_transform": "view transform",
    "pts_voxel_encoder": "LiDAR encoder",
    "pts_middle_encoder": "LiDAR encoder",
    "fusion_layer": "fuser",
    "pts_backbone": "BEV backbone",
    "pts_neck": "BEV neck",
    "bbox_head": "head",
    "map_head": "map head",
}
Kind = Literal["missing", "unexpected", "of another shape"]
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """One tensor that is not where or what it should be. `detail` shows both shapes where they differ."""

    name: str
    kind: Kind
    detail: str = ""

    @property
    def stage(self) -> str:
        child = self.name.split(".", 1)[0]
        return _STAGES.get(child, child)


def misfits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[Misfit]:
    """Everything in which `state` differs from the tensors of a model, in the model's order."""
    found = []
    for name, own in expected.items():
        if name not in state:
            found.append(Misfit(name=name, kind="missing"))
        elif state[name].shape != own.shape or state[name].dtype != own.dtype:
            detail = f"{_kind(state[name])}, not {_kind(own)}"
            found.append(Misfit(name=name, kind="of another shape", detail=detail))
    found += [Misfit(name=name, kind="unexpected") for name in state if name not in expected]
    return found


def require_fit(state: Mapping[str, Tensor], model: FusionModel, *, source: str, wanted: str) -> None:
    """Checks every name, shape and number type.

    Raises:
        CheckpointError: lists what is missing, unexpected and of another shape by stage, and which preset would fit.
    """
    expected = model.state_dict()
    found = misfits(state, expected)
    if not found:
        return
    fitting = [name for name in PRESETS if not misfits(state, _shapes_of(name))]
    raise CheckpointError(
        f"{source} does not hold the weights of {wanted}:\n" + "\n".join(_by_stage(found)),
        expected=f"the {len(expected)} tensors of {wanted}",
        remedy=f'they fit {fitting[0]}: set model = "{fitting[0]}" in the recipe'
        if fitting
        else "name the model they were trained as, or give its configuration with --mmdet3d-config",
    )


def _by_stage(found: list[Misfit]) -> Iterable[str]:
    for stage in dict.fromkeys(misfit.stage for misfit in found):
        parts = []
        for kind in ("missing", "unexpected", "of another shape"):
            chosen = [misfit for misfit in found if misfit.stage == stage and misfit.kind == kind]
            if chosen:
                shown = ", ".join(f"{m.name} {m.detail}".rstrip() for m in chosen[:_SHOWN])
                parts.append(f"{len(chosen)} {kind} ({shown}{', ...' if len(chosen) > _SHOWN else ''})")
        yield f"  {stage}: " + "; ".join(parts)


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _shapes_of(preset: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return FusionModel(PRESETS[preset]).state_dict()
