"""3D IoU of rotated boxes for the assignment: exact, vectorised over the pairs near enough to touch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_EPS = 1e-9
_UNIT_CORNERS = np.array([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])


def overlaps_3d(a_n7: Array, b_m7: Array) -> Array:
    """IoU [N, M] of boxes x, y, z (centre), length, width, height, yaw."""
    reach = np.hypot(a_n7[:, 3], a_n7[:, 4])[:, None] / 2 + np.hypot(b_m7[:, 3], b_m7[:, 4])[None] / 2
    distance = np.linalg.norm(a_n7[:, None, :2] - b_m7[None, :, :2], axis=-1)
    shared_z = np.minimum((a_n7[:, 2] + a_n7[:, 5] / 2)[:, None], (b_m7[:, 2] + b_m7[:, 5] / 2)[None]) - np.maximum(
        (a_n7[:, 2] - a_n7[:, 5] / 2)[:, None], (b_m7[:, 2] - b_m7[:, 5] / 2)[None]
    )
    rows, columns = np.nonzero((distance < reach) & (shared_z > 0))
    result = np.zeros(distance.shape)
    if len(rows) == 0:
        return result
    shared = intersection_areas(a_n7[rows], b_m7[columns]) * shared_z[rows, columns]
    volume_a, volume_b = a_n7[rows, 3:6].prod(axis=1), b_m7[columns, 3:6].prod(axis=1)
    result[rows, columns] = shared / np.maximum(volume_a + volume_b - shared, _EPS)
    return result


def _corners(boxes_n7: Array) -> Array:
    """Ground corners [N, 4, 2], counter-clockwise."""
    cos, sin = np.cos(boxes_n7[:, 6])[:, None], np.sin(boxes_n7[:, 6])[:, None]
    local = _UNIT_CORNERS[None] * boxes_n7[:, None, 3:5]
    x, y = local[..., 0], local[..., 1]
    corners: Array = np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1) + boxes_n7[:, None, :2]
    return corners


def _inside(points_nk2: Array, boxes_n7: Array) -> NDArray[np.bool_]:
    offset = points_nk2 - boxes_n7[:, None, :2]
    cos, sin = np.cos(boxes_n7[:, 6])[:, None], np.sin(boxes_n7[:, 6])[:, None]
    along = np.abs(offset[..., 0] * cos + offset[..., 1] * sin)
    across = np.abs(offset[..., 1] * cos - offset[..., 0] * sin)
    half = boxes_n7[:, 3:5] / 2 + _EPS
    inside: NDArray[np.bool_] = (along <= half[:, None, 0]) & (across <= half[:, None, 1])
    return inside


def intersection_areas(a_k7: Array, b_k7: Array) -> Array:
    """Shared ground area [K] of box pairs: the hull of mutual corners and edge crossings, by the shoelace formula."""
    corners_a, corners_b = _corners(a_k7), _corners(b_k7)
    step_a = (np.roll(corners_a, -1, axis=1) - corners_a)[:, :, None]
    step_b = (np.roll(corners_b, -1, axis=1) - corners_b)[:, None]
    gap = corners_b[:, None] - corners_a[:, :, None]
    cross = step_a[..., 0] * step_b[..., 1] - step_a[..., 1] * step_b[..., 0]
    parallel = np.abs(cross) < _EPS
    safe = np.where(parallel, 1.0, cross)
    t = (gap[..., 0] * step_b[..., 1] - gap[..., 1] * step_b[..., 0]) / safe
    u = (gap[..., 0] * step_a[..., 1] - gap[..., 1] * step_a[..., 0]) / safe
    crosses = ~parallel & (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)
    crossings = corners_a[:, :, None] + t[..., None] * step_a
    pairs = len(a_k7)
    points = np.concatenate([crossings.reshape(pairs, 16, 2), corners_a, corners_b], axis=1)
    valid = np.concatenate([crosses.reshape(pairs, 16), _inside(corners_a, b_k7), _inside(corners_b, a_k7)], axis=1)
    count = valid.sum(axis=1)
    centre = (points * valid[..., None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    # Points that are no vertices are moved to the first vertex, where they add no area.
    first = points[np.arange(pairs), valid.argmax(axis=1)]
    points = np.where(valid[..., None], points, first[:, None]) - centre[:, None]
    order = np.argsort(np.arctan2(points[..., 1], points[..., 0]), axis=1)
    ring = np.take_along_axis(points, order[..., None], axis=1)
    following = np.roll(ring, -1, axis=1)
    area = np.abs((ring[..., 0] * following[..., 1] - ring[..., 1] * following[..., 0]).sum(axis=1)) / 2
    return np.where(count >= 3, area, 0.0)
