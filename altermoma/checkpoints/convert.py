"""A foreign checkpoint as a model of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from altermoma.checkpoints.fit import require_fit
from altermoma.checkpoints.foreign import ForeignCheckpoint, read_foreign
from altermoma.checkpoints.names_mit import from_mit, is_mit
from altermoma.checkpoints.names_mmdet3d import from_mmdet3d, take_constants
from altermoma.checkpoints.sparse_layout import Layout, layout_of, to_out_first
from altermoma.checkpoints.widths import load_pruned
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A foreign checkpoint after loading.

    Attributes:
        model: with its weights, in eval mode.
        spelling: whose parameter names the file uses.
        layout: of its sparse convolution weights.
        set_aside: tensors of the file that are no weights of the network.
    """

    model: FusionModel
    spelling: Literal["mit-han-lab", "mmdet3d"]
    layout: Layout
    set_aside: tuple[str, ...]


def load_foreign(path: Path, config: ModelConfig, *, name: str, pruned: bool = False) -> Loaded:
    """Loads a .pth of mit-han-lab's or mmdet3d's BEVFusion by parameter names.

    Args:
        path: the file.
        config: the model it was trained as.
        name: of that model, for messages.
        pruned: whether channel counts may differ from the configuration's. Otherwise every shape must be the same.

    Raises:
        CheckpointError: unreadable or with code in it (see `read_foreign`), trained with another geometry, or the
            weights of another model: what is missing, unexpected or of another shape is listed by stage.
    """
    model = FusionModel(config)
    foreign = read_foreign(path)
    expected = model.state_dict()
    mit = is_mit(foreign.state)
    state = _our_names(foreign, mit)
    set_aside = take_constants(state, config.geometry, path.name)
    layout = layout_of(state, expected)
    state = to_out_first(state, expected)
    if not pruned:
        require_fit(state, model, source=path.name, wanted=name)
    load_pruned(model, state, source=path.name)
    return Loaded(model=model.eval(), spelling="mit-han-lab" if mit else "mmdet3d", layout=layout, set_aside=set_aside)


def _our_names(foreign: ForeignCheckpoint, mit: bool) -> dict[str, Tensor]:
    rename = from_mit if mit else from_mmdet3d
    return {rename(name): tensor for name, tensor in foreign.state.items()}
