"""The cells of a table: which there are, in which order, and what each is known by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from altermoma.experiments.recipe import ExperimentRecipe, Granularity
from altermoma.recipe import Method, PruneRecipe, TrainRecipe
from altermoma.storage import content_key
from altermoma.workflow.given_tables import TABLES, tables_inputs

SCHEMA = 1
"""Part of every key: raised where a change of the code changes what a cell measures."""

_EVERY = ("method", "amount", "scope", "seed", "batch_size")
_GRANULARITY: dict[Granularity, tuple[str, ...]] = {
    "weights": (),
    "channels": ("budget", "channel_step", "lidar_channel_step", "min_channels", "aggregation", "selection"),
}
_REACTIVATION = ("reactivation_batches", "reri_batches", "reactivation_lr")
_METHOD: dict[Method, tuple[str, ...]] = {
    "altermoma": ("alpha", "beta", "redundancy", "unit", "score_batches", *_REACTIVATION),
    "snip": ("score_batches",),
    "imp": ("imp_rounds", "imp_steps"),
    "synflow": ("synflow_rounds",),
    "prospr": ("prospr_steps", "prospr_draws", "prospr_lr"),
    "magnitude": (),
    "random": (),
}
_TRAINING: tuple[str, ...] = (
    *("steps", "batch_size", "lr", "weight_decay", "warmup_share", "grad_clip", "schedule", "augment"),
    *("ema_decay", "match_radius", "depth_weight", "seed"),
)
"""Keys of the recipe that decide what a cell measures. Named one by one: a new key of the recipe, or one that another
method reads, leaves cells as they are."""
TIMED = "timed"
"""Key of the ground of experiments whose cells are timed; others lack it, so that their cells stay."""
_IN_ROUNDS = frozenset({"imp", "synflow"})
"""Methods whose scores always depend on the amount."""
_BY_GRADIENTS = frozenset({"altermoma", "snip"})
"""Methods whose scores depend on `prune.norms`."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One pruned model: scored, cut, fine-tuned, evaluated.

    Attributes:
        label: the row it belongs to: the method, or the variant of AlterMOMA where it has variants.
        prune, finetune: with the cell's method, amount and seed.
    """

    label: str
    prune: PruneRecipe
    finetune: TrainRecipe

    @property
    def amount(self) -> float:
        return self.prune.amount

    @property
    def seed(self) -> int:
        return self.prune.seed

    def scoring_key(self, ground: Mapping[str, Any]) -> str:
        """Of the scores, which several amounts may share. `ground`: what all cells of the experiment stand on."""
        record = self._asked(ground)
        if not self._in_rounds:
            del record["amount"]
            if TIMED in ground:  # rows are selections by the same scores
                del record["budget"], record["selection"]
                record.pop(TABLES, None)
        if self.prune.method == "imp":
            record |= self._trained()
        return content_key({"schema": SCHEMA, "ground": dict(ground), "scores": record})

    def key(self, ground: Mapping[str, Any]) -> str:
        return content_key({"schema": SCHEMA, "ground": dict(ground), "cell": self._asked(ground) | self._trained()})

    @property
    def _in_rounds(self) -> bool:
        """Whether the scores depend on the amount."""
        return self.prune.method in _IN_ROUNDS or (self.prune.method == "altermoma" and self.prune.score_rounds > 1)

    def _asked(self, ground: Mapping[str, Any]) -> dict[str, Any]:
        keys = (*_EVERY, *_GRANULARITY[ground["granularity"]], *_METHOD[self.prune.method])
        record = {key: getattr(self.prune, key) for key in keys}
        if self.prune.norms != "running" and self.prune.method in _BY_GRADIENTS:
            record["norms"] = self.prune.norms  # here and below only then, so that cells from before it counted stay
        if self.prune.score_rounds > 1 and self.prune.method == "altermoma":
            record["score_rounds"] = self.prune.score_rounds
        if self.prune.budget == "latency":
            record |= tables_inputs(self.prune)
        if self._in_rounds and ground.get("threshold") == "partition":
            # Scores from before the rounds cut by this threshold too are others.
            record["rounds_per"] = "partition"
        return record

    def _trained(self) -> dict[str, Any]:
        record = {f"finetune.{key}": getattr(self.finetune, key) for key in _TRAINING}
        if self.finetune.masked != "none":  # only then, so that cells from before it counted stay
            record["finetune.masked"] = self.finetune.masked
        return record


def cells_of(recipe: ExperimentRecipe, filled: PruneRecipe) -> Iterator[Cell]:
    """All cells of an experiment, whose [prune] is `filled` where it was left open.

    Seed by seed, so that an early end leaves whole columns; amounts and methods in the recipe's order.
    """
    for seed in range(recipe.seeds):
        finetune = dataclasses.replace(recipe.finetune, seed=recipe.finetune.seed + seed)
        for amount in recipe.amounts:
            for method in recipe.methods:
                prune = dataclasses.replace(filled, method=method, amount=amount, seed=filled.seed + seed)
                if method == "altermoma" and recipe.variants:
                    for variant in recipe.variants:
                        yield Cell(label=variant.name, prune=variant.of(prune), finetune=finetune)
                else:
                    yield Cell(label=method, prune=prune, finetune=finetune)
