"""Truth of the map head: which ground cells are of which class, from a folder of masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from altermoma.errors import DataError

MAP_TRUTH = "map_truth"
"""Name of a frame's mask [1, classes, x, y] among the network inputs, of which it is none."""


class MapMasks:
    """Masks `<sample token>.npy`, bool or numbers 0 and 1 [classes, x, y] in the LiDAR frame of the key sweep.

    Classes are those of `altermoma.frames.MAP_CLASSES`, cells those of the model's map: both as its head puts them out.

    Args:
        folder: of the files.
        shape: classes, cells along x, cells along y.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        if not folder.is_dir():
            raise DataError(
                f"no map masks at {folder}", expected="a folder of <sample token>.npy", remedy="check data.map_masks"
            )
        self.folder, self.shape = folder, shape
        self._wanted = f"0 and 1 in an array {list(shape)}: class, x, y"

    def check(self, tokens: Sequence[str]) -> None:
        """Raises a DataError that names the first sample without a mask."""
        missing = [token for token in tokens if not self._path(token).is_file()]
        if missing:
            raise DataError(
                f"no map mask {self._path(missing[0])}, one of {len(missing)} that are missing",
                expected=f"a mask for each of {len(tokens)} samples, {self._wanted}",
                remedy="write the masks of both splits; docs/pillars.md says how they look",
            )

    def _path(self, token: str) -> Path:
        return self.folder / f"{token}.npy"

    def read(self, token: str) -> NDArray[np.float32]:
        """The mask of a sample [1, classes, x, y].

        Raises:
            DataError: unreadable, not a mask, or one of another shape.
        """
        path = self._path(token)
        try:
            mask = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{path} cannot be read: {error}", expected=self._wanted, remedy="write it again"
            ) from error
        if not isinstance(mask, np.ndarray) or mask.shape != self.shape:
            found = list(mask.shape) if isinstance(mask, np.ndarray) else "several arrays"
            raise DataError(f"{path} holds {found}", expected=self._wanted, remedy="write it in the map head's grid")
        if mask.dtype.kind not in "buif" or not np.isin(mask, (0, 1)).all():
            raise DataError(f"{path} holds other values than 0 and 1", expected=self._wanted, remedy="threshold it")
        return mask[None].astype(np.float32)


def no_masks() -> DataError:
    """What a map head without truth ends in: it would be trained, or its channels scored, by nothing."""
    return DataError(
        "the model has a map head, and the frames have no map masks",
        expected="a mask per frame",
        remedy="name their folder: map_masks in the recipe's [data]",
    )
