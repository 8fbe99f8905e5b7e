"""SNIP (Lee et al., ICLR 2019): connection sensitivity |theta * dL/dtheta| of the whole sample, in one shot."""

from __future__ import annotations

from torch import Tensor

from altermoma.progress import track
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.masking import bind, gradients, preserved
from altermoma.pruning.methods.scoring import Scoring


def snip_scores(work: Scoring) -> ChannelVectors:
    """Gradients are summed over the batches *before* the absolute value: terms of opposite sign cancel.

    That, the scale and the missing redundancy are what tells it from AlterMOMA's DeCI.
    """
    loss = bind(work.model, work.loss_fn)
    total: list[Tensor] = []
    with preserved(work.model, work.recipe.norms) as theta:
        for batch in track(work.batches[: work.recipe.score_batches], "Scores, SNIP"):
            found = gradients(loss(batch, "none"), work.terms.parameters)
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        return work.terms.magnitude(theta, total)
