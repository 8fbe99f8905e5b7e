"""Box geometry in the LiDAR frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SIGNS_83 = np.array(
    [[1, 1, -1], [1, -1, -1], [-1, -1, -1], [-1, 1, -1], [1, 1, 1], [1, -1, 1], [-1, -1, 1], [-1, 1, 1]], np.float32
)
"""Corner order: bottom face from front left clockwise, then the top face. The first two corners are the front."""


def corners(geometry_m9: NDArray[np.float32]) -> NDArray[np.float32]:
    """Corners of boxes (altermoma.frames.Boxes): float32 [M, 8, 3], metres."""
    offsets = _SIGNS_83 * geometry_m9[:, None, 3:6] / 2
    cos, sin = np.cos(geometry_m9[:, 6])[:, None], np.sin(geometry_m9[:, 6])[:, None]
    x = offsets[..., 0] * cos - offsets[..., 1] * sin
    y = offsets[..., 0] * sin + offsets[..., 1] * cos
    turned: NDArray[np.float32] = np.stack([x, y, offsets[..., 2]], axis=-1) + geometry_m9[:, None, :3]
    return turned
