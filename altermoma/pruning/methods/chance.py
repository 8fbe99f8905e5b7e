"""Random scores, the control that any method must beat."""

from __future__ import annotations

import torch

from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.methods.scoring import Scoring


def chance_scores(work: Scoring) -> ChannelVectors:
    """Uniform in [0, 1), by the recipe's seed."""
    generator = torch.Generator().manual_seed(work.recipe.seed)
    return {
        group.name: torch.rand(group.width, generator=generator, dtype=torch.float64) for group in work.terms.groups
    }
