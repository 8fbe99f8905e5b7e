"""Scene names of nuScenes's splits, so that its own tools accept the synthetic world under these names."""

from __future__ import annotations

MINI_TRAIN: tuple[str, ...] = (
    "scene-0061", "scene-0553", "scene-0655", "scene-0757", "scene-0796", "scene-1077", "scene-1094", "scene-1100",
)  # fmt: skip
MINI_VAL: tuple[str, ...] = ("scene-0103", "scene-0916")
_MORE_TRAIN_RANGES: tuple[tuple[int, int], ...] = (
    (1, 2), (4, 11), (19, 34), (41, 76), (120, 135), (138, 139), (149, 152), (154, 155), (157, 168), (170, 176),
)  # fmt: skip
MORE_TRAIN: tuple[str, ...] = tuple(
    name
    for first, last in _MORE_TRAIN_RANGES
    for i in range(first, last + 1)
    if (name := f"scene-{i:04d}") != "scene-0061"
)
"""Further names of nuScenes's `train` split, in its order."""


def scene_names(count: int) -> tuple[str, ...]:
    """The first `count` names: mini_train and mini_val interleaved so that two scenes hold one of each, then train.

    Raises:
        ValueError: more than there are names.
    """
    mini = (MINI_TRAIN[0], MINI_VAL[0], MINI_TRAIN[1], MINI_VAL[1], *MINI_TRAIN[2:])
    names = (*mini, *MORE_TRAIN)
    if not 1 <= count <= len(names):
        raise ValueError(f"1 to {len(names)} scenes can be named, not {count}")
    return names[:count]
