"""How far an int8 stage is from what was wanted, by measures that a broken stage fails, and how far it may be.

The largest difference says nothing here: of a million rounded numbers one may always be far off (the peak of a softmax
that moves on). What rounding does to a graph shows in its power, and it leaves sizes as they are:

- `noise`: root of the power of the difference over that of what was wanted;
- `gain`: how far the factor that fits best, <found, wanted> / <wanted, wanted>, is from 1;
- `gain along AXIS`: the same of the worst slice along an axis, as one channel or one camera is;
- of labels, which are no amounts: `lost`, the share of the proposals' score without a partner of the same class at the
  same place (`matching.Pairing`).

Of proposals the tenth that is farthest off is left out: one that is seen from its other end is one wrong box, which the
check of the whole frame bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.matching import HEAD, LOST_SHARE, pair_proposals

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]
Measures = Mapping[str, float]
"""Values by the names of measures."""

MARGIN: Final = 2.0
"""What was measured at the export times this is allowed. Other roundings of one graph differ by less (docs/int8.md)."""

FLOOR: Final = 5e-2
"""Allowed at least: as for fp16, in which the rest of an int8 stage computes."""

WEAK: Final = 1e-2
"""Slices below this share of the mean power are not held to their gain: they hold little but rounding."""

NOISE: Final = "noise"
LOST: Final = "lost"


def stage_noise(wanted: Arrays, found: Arrays) -> dict[str, dict[str, float]]:
    """Every measure of every output of a stage, by its name.

    Args:
        wanted: outputs of the stage.
        found: the same of another runtime or graph.
    """
    pairs = {name: (_f64(found[name]), _f64(array)) for name, array in wanted.items()}
    if HEAD.labels not in wanted:
        return {name: _measured(got, want) for name, (got, want) in pairs.items()}
    if not all(np.isfinite(got).all() for got, _ in pairs.values()):
        return {name: _measured(got, want) for name, (got, want) in pairs.items()} | {HEAD.labels: {LOST: 1.0}}
    paired, count = pair_proposals(wanted, found, HEAD), wanted[HEAD.labels].shape[-1]
    measures: dict[str, dict[str, float]] = {}
    for name, (got, want) in pairs.items():
        if name == HEAD.labels:
            measures[name] = {LOST: 1.0 - paired.matched}
        elif want.ndim <= 3 and want.shape[-1] == count:
            near = _nearest(got[..., paired.right], want[..., paired.left], count)
            measures[name] = _measured(*near, axes=want.ndim - 1)
        else:
            measures[name] = _measured(got, want)
    return measures


def limits(recorded: Measures, ceiling: float) -> dict[str, float]:
    """How far an output may be off, by measure.

    Args:
        recorded: what was measured at the export; empty in bundles that were written before it was.
        ceiling: bound of the noise, and of everything where nothing is recorded.
    """
    if not recorded:
        return {NOISE: ceiling, LOST: max(LOST_SHARE, ceiling)}
    allowed = {name: max(LOST_SHARE if name == LOST else FLOOR, MARGIN * value) for name, value in recorded.items()}
    return allowed | {NOISE: min(allowed[NOISE], ceiling)} if NOISE in allowed else allowed


def worst(measured: Measures, allowed: Measures) -> tuple[str, float, float]:
    """Name, value and limit of the measure that comes nearest to its limit, or is farthest beyond it."""
    held = [(name, value, allowed[name]) for name, value in measured.items() if name in allowed]
    return max(held, key=lambda item: item[1] / max(item[2], 1e-12))


def relative_noise(found: Floats, wanted: Floats) -> float:
    """Root of the power of the difference over that of what was wanted."""
    power = float((wanted**2).sum())
    return float(np.sqrt(((found - wanted) ** 2).sum() / max(power, 1e-24))) if found.size else 0.0


def _measured(found: Floats, wanted: Floats, axes: int | None = None) -> dict[str, float]:
    """Noise and gains; along the first `axes` axes, or all."""
    if not np.isfinite(found).all():
        return {NOISE: float("inf")}
    measures = {NOISE: relative_noise(found, wanted), "gain": _gain(found.reshape(1, -1), wanted.reshape(1, -1))}
    for axis in range(wanted.ndim if axes is None else axes):
        if wanted.shape[axis] > 1:
            slices = (np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in (found, wanted))
            measures[f"gain along {axis}"] = _gain(*slices)
    return measures


def _gain(found_sn: Floats, wanted_sn: Floats) -> float:
    """How far the gain of the worst slice that is not weak is from 1."""
    power_s = (wanted_sn**2).sum(1)
    told = power_s > max(WEAK * float(power_s.mean()), 1e-24) if power_s.size else np.zeros(0, bool)
    products_s = np.einsum("sn,sn->s", found_sn[told], wanted_sn[told])
    return float(np.abs(products_s / power_s[told] - 1).max(initial=0.0))


def _nearest(found: Floats, wanted: Floats, count: int) -> tuple[Floats, Floats]:
    """Without the paired proposals that are farthest off, a tenth of all `count`."""
    off_p = ((found - wanted) ** 2).sum(tuple(range(found.ndim - 1)))
    near = np.sort(np.argsort(off_p, kind="stable")[: max(1, len(off_p) - int(LOST_SHARE * count))])
    return found[..., near], wanted[..., near]


def _f64(array: NDArray[Any]) -> Floats:
    return array.astype(np.float64)
