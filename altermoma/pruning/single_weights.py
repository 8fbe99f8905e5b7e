"""Single weights that are gone: a model with zeros in their places, and what its checkpoint says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from altermoma.errors import CheckpointError

PATTERN = "single weights"
"""What a checkpoint's record says it holds, where 2:4 says "2:4"."""


def record_of(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """How many weights of each tensor stay, for the checkpoint of the model that the masks were applied to."""
    return {"pattern": PATTERN, "kept": {name: int(mask.sum()) for name, mask in masks.items()}}


def claimed_masks(state: Mapping[str, Tensor], record: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The masks of a checkpoint whose record is of `record_of`: what is zero stays so.

    Args:
        state: its weights.
        record: what it says under "sparsity".
        source: named in errors.

    Raises:
        CheckpointError: a record without counts, or weights of which more are there than it says.
    """
    kept = record.get("kept")
    if not isinstance(kept, dict):
        raise CheckpointError(
            f"{source} says it was pruned weight by weight, but not how many stay",
            expected='"kept": a number for each weight tensor',
            remedy="prune again",
        )
    masks = {}
    for name, count in kept.items():
        weight = state.get(name)
        found = -1 if weight is None else int(weight.count_nonzero())
        if weight is None or type(count) is not int or found > count:
            raise CheckpointError(
                f"{source} has {'no' if weight is None else found} weights in {name}",
                expected=f"at most {count}, which is what pruning left",
                remedy="fine-tune such checkpoints with altermoma, which keeps zeros, or prune again",
            )
        masks[name] = weight != 0
    return masks
