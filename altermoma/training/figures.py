"""Figures of one step, from all its parts and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from altermoma.models.ranks import Ranks


def combined(parts: Sequence[Mapping[str, float]], ranks: Ranks, device: torch.device) -> dict[str, float]:
    """`LossTerms.parts()` of all parts and processes as those of the whole batch.

    Losses are means over parts of sums over processes; `matched` counts queries of all of them, and `overlap` is the
    mean over those.
    """
    if len(parts) == 1 and ranks.size == 1:
        return dict(parts[0])
    names = list(parts[0])
    sums = {name: sum(part[name] for part in parts) / len(parts) for name in names}
    sums["matched"] = sum(part["matched"] for part in parts)
    sums["overlap"] = sum(part["overlap"] * part["matched"] for part in parts)
    if ranks.size > 1:
        everywhere = ranks.total(torch.tensor([sums[name] for name in names], dtype=torch.float64, device=device))
        sums = dict(zip(names, everywhere.tolist(), strict=True))
    sums["overlap"] /= max(sums["matched"], 1.0)
    return sums
