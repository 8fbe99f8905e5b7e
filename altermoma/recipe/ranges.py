"""Which values the numbers and names of a recipe may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from altermoma.errors import RecipeError

if TYPE_CHECKING:
    from altermoma.recipe.sections import Recipe


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers that are allowed: from `low` to `high`, the ends included unless said otherwise."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, number: float) -> bool:
        fine = self.low < number if self.above else self.low <= number
        return fine and (number < self.high if self.below else number <= self.high) and math.isfinite(number)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        ends = [f"{'above' if self.above else 'at least'} {self.low:g}"] if math.isfinite(self.low) else []
        ends += [f"{'below' if self.below else 'at most'} {self.high:g}"] if math.isfinite(self.high) else []
        return " and ".join(ends) or "a finite number"


_ANY, _COUNT, _NATURAL = Range(), Range(low=1), Range(low=0)
_POSITIVE, _PART = Range(low=0, above=True), Range(low=0, high=1, below=True)
RANGES: dict[str, dict[str, Range]] = {
    "data": {"sweeps": _COUNT, "synth_scenes": _COUNT, "synth_seed": _NATURAL},
    "prune": {
        "amount": _PART,
        "channel_step": _NATURAL,
        "lidar_channel_step": _NATURAL,
        "min_channels": _COUNT,
        "alpha": _ANY,
        "beta": _ANY,
        "score_batches": _NATURAL,
        "reactivation_batches": _NATURAL,
        "reri_batches": _NATURAL,
        "reactivation_lr": _NATURAL,
        "batch_size": _NATURAL,
        "score_rounds": _COUNT,
        "imp_rounds": _COUNT,
        "imp_steps": _COUNT,
        "synflow_rounds": _COUNT,
        "prospr_steps": _COUNT,
        "prospr_draws": _COUNT,
        "prospr_lr": _POSITIVE,
        "seed": _NATURAL,
    },
    "finetune": {
        "steps": _NATURAL,
        "batch_size": _COUNT,
        "lr": _POSITIVE,
        "weight_decay": _NATURAL,
        "warmup_share": Range(low=0, high=1),
        "grad_clip": _POSITIVE,
        "ema_decay": _PART,
        "match_radius": _NATURAL,
        "depth_weight": _NATURAL,
        "distill_weight": _NATURAL,
        "checkpoint_every": _COUNT,
        "seed": _NATURAL,
    },
    "export": {
        "opset": Range(low=17, high=17),
        **dict.fromkeys(
            ("fp32_tolerance", "fp32_frame_tolerance", "fp16_tolerance", "fp16_frame_tolerance", "int8_tolerance"),
            _POSITIVE,
        ),
    },
    "builder": {
        "optimization_level": Range(low=-1, high=5),
        **dict.fromkeys(("workspace_mib", "tactic_dram_mib", "tactic_shared_kib", "dla_core"), _NATURAL),
    },
    "calibration": {"max_map_drop": _NATURAL, "tune_steps": _NATURAL},
    "parity": {"fp32_boxes": _POSITIVE, "fp16_map": _POSITIVE, "int8_map": _POSITIVE},
    "compute": {"accumulate": _COUNT, "workers": _NATURAL},
    "bench": {"frames": _COUNT, "rounds": _COUNT, "warmup": _NATURAL, "threads": _COUNT},
}
"""Every number of a recipe. Checked before any work, so that no run ends in its tenth minute over a minus sign."""


def check_values(recipe: Recipe) -> None:
    for section, ranges in RANGES.items():
        values = getattr(recipe, section)
        for key, allowed in ranges.items():
            number = getattr(values, key)
            if not allowed.holds(number):
                default = getattr(type(values)(), key)
                remedy = f"change it, or leave it out: {default} is the default"
                raise RecipeError(f"{section}.{key} = {number}", expected=str(allowed), remedy=remedy)
    if not recipe.prune.scope or len(set(recipe.prune.scope)) < len(recipe.prune.scope):
        raise RecipeError(
            f"prune.scope = {list(recipe.prune.scope)}",
            expected="at least one partition, each once",
            remedy="name camera, lidar or fusion; a prune.amount of 0 prunes nothing",
        )
    for key, name in (("name", recipe.name), ("data.version", recipe.data.version)):
        if not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise RecipeError(
                f"{key} = {name!r}",
                expected="the name of a folder, not a path",
                remedy="use letters, digits and dashes",
            )
