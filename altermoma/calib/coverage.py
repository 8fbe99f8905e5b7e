"""Few frames that show as much as many do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set


def cover(features: Sequence[Set[str]], count: int) -> list[int]:
    """Indices of `count` items, in rising order, chosen one by one, each with the rarest features so far.

    A feature that was chosen n times counts 1 / (1 + n)^2 for the next choice; the earlier item wins a tie.

    Args:
        features: of each item.
        count: items wanted, at most as many as there are.
    """
    seen: Counter[str] = Counter()
    free = list(range(len(features)))
    chosen: list[int] = []
    while len(chosen) < count:
        best = max(free, key=lambda index: (sum((1 + seen[name]) ** -2.0 for name in features[index]), -index))
        free.remove(best)
        chosen.append(best)
        seen.update(features[best])
    return sorted(chosen)
