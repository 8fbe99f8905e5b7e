"""Magnitude, a control: the mean |weight| of each unit, without data, in one shot."""

from __future__ import annotations

from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.methods.scoring import Scoring, mean_magnitude


def magnitude_scores(work: Scoring) -> ChannelVectors:
    return mean_magnitude(work.model, work.terms)
