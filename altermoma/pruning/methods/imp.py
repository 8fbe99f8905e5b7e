"""IMP (Frankle & Carbin, ICLR 2019): train, remove the smallest magnitudes of all, rewind what stays, again and again.

The point that is rewound to is the trained dense model, as for every other method here: a lottery ticket drawn from
random weights would train the detector anew in every round, which neither this package nor the paper's comparison does.
"""

from __future__ import annotations

from altermoma.errors import PruningError
from altermoma.progress import track
from altermoma.pruning.channels import ChannelVectors
from altermoma.pruning.methods.scoring import Scoring, mean_magnitude, share_of_round
from altermoma.pruning.unstructured import Masks, masked_model


def imp_scores(work: Scoring) -> ChannelVectors:
    """Magnitudes after the last round of training; what earlier rounds removed is zero there, so it goes first.

    Raises:
        PruningError: nothing to train with.
    """
    if work.retrain is None:
        raise PruningError(
            "IMP without training between its rounds",
            expected="a way to train the model",
            remedy="run it with altermoma prune or altermoma experiment, or give Scoring.retrain",
        )
    recipe = work.recipe
    masks: Masks = {}
    scores: ChannelVectors = {}
    for turn in track(range(1, recipe.imp_rounds + 1), "Rounds of IMP"):
        if turn > 1:
            masks = work.cut(scores, share_of_round(recipe.amount, turn - 1, recipe.imp_rounds))
        trained = work.retrain(masked_model(work.model, masks), masks, turn)
        scores = mean_magnitude(trained, work.terms)
    return scores
