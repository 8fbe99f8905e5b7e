"""What a checkpoint says of its zeros, of whichever kind, as masks that training keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from altermoma.pruning import single_weights, two_four


def claimed_masks(state: Mapping[str, Tensor], record: Any, source: str) -> dict[str, Tensor]:
    """The masks of a checkpoint; empty for a dense one.

    Args:
        state: its weights.
        record: what it says under "sparsity"; None for a dense one.
        source: named in errors.

    Raises:
        CheckpointError: a kind of zeros that is not known, or weights where zeros should be.
    """
    if isinstance(record, dict) and record.get("pattern") == single_weights.PATTERN:
        return single_weights.claimed_masks(state, record, source)
    return two_four.claimed_masks(state, record, source)
