"""One frame as pictures: six cameras with projected boxes, and the bird's-eye view. Images inline, boxes as vectors."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from altermoma.frames import CLASS_NAMES, Boxes, Calibration, Frame
from altermoma.ops.boxes import corners

NEAR_M = 0.3
"""Edges are cut at this depth before the camera: what lies behind must not be projected."""
BEV_PIXELS = 900
JPEG_QUALITY = 82
CAMERA_ORDER = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """One box as an SVG path in the pixels of its picture."""

    kind: str
    label: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a data URI, and what is drawn over it."""

    name: str
    uri: str
    width: int
    height: int
    overlays: tuple[Overlay, ...]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the page shows of a frame; `rings` are distances in metres with their radius in pixels of `bev`."""

    token: str
    scene: str
    cameras: tuple[Picture, ...]
    bev: Picture
    points: int
    counts: dict[str, int]
    classes: dict[str, dict[str, int]]
    rings: tuple[tuple[int, float], ...]


def draw_scene(frame: Frame, boxes: Mapping[str, Boxes], half_extent_m: float, min_score: float = 0.3) -> Scene:
    """Draws one frame.

    Args:
        frame: as read.
        boxes: by kind ("truth", "dense", "pruned"), in the LiDAR frame.
        half_extent_m: half the side of the bird's-eye view.
        min_score: weaker detections are left out.
    """
    shown = {kind: found.select(found.scores_m >= min_score) for kind, found in boxes.items()}
    names = frame.calibration.camera_names
    cameras = tuple(_camera(frame, index, shown) for index in sorted(range(len(names)), key=lambda i: _place(names[i])))
    return Scene(
        token=frame.token,
        scene=frame.scene,
        cameras=cameras,
        bev=_bev(frame, shown, half_extent_m),
        points=len(frame.points_p5),
        counts={kind: len(found) for kind, found in shown.items()},
        classes=_class_counts(shown),
        rings=tuple((m, m * BEV_PIXELS / (2 * half_extent_m)) for m in range(10, int(half_extent_m) + 1, 10)),
    )


def _place(name: str) -> int:
    """Where a camera stands in the rows of pictures: the view ahead above the view behind, left to right."""
    return CAMERA_ORDER.index(name) if name in CAMERA_ORDER else len(CAMERA_ORDER)


def _class_counts(boxes: Mapping[str, Boxes]) -> dict[str, dict[str, int]]:
    """Boxes by class and kind; classes that nothing shows are left out."""
    counts = {
        name: {kind: int((found.labels_m == label).sum()) for kind, found in boxes.items()}
        for label, name in enumerate(CLASS_NAMES)
    }
    return {name: found for name, found in counts.items() if any(found.values())}


def _camera(frame: Frame, index: int, boxes: Mapping[str, Boxes]) -> Picture:
    image = Image.fromarray(frame.images_vhw3[index])
    overlays = [
        Overlay(kind=kind, label=_label(found, m), path=path)
        for kind, found in boxes.items()
        for m, path in enumerate(project_boxes(found, frame.calibration, index))
        if path
    ]
    return Picture(
        name=frame.calibration.camera_names[index],
        uri=_uri(image, "JPEG"),
        width=image.width,
        height=image.height,
        overlays=tuple(overlays),
    )


def project_boxes(boxes: Boxes, calibration: Calibration, index: int) -> list[str]:
    """SVG paths of the twelve edges of each box in camera `index`; empty where nothing is in the picture."""
    if not len(boxes):
        return []
    corners_m83 = corners(boxes.geometry_m9).astype(np.float64)
    camera_from_lidar = calibration.camera_from_lidar_v44[index]
    corners_m83 = corners_m83 @ camera_from_lidar[:3, :3].T + camera_from_lidar[:3, 3]
    height, width = calibration.image_hw
    paths = []
    for box_83 in corners_m83:
        edges = [_edge(box_83[a], box_83[b], calibration.intrinsics_v33[index]) for a, b in _EDGES]
        seen = [edge for edge in edges if edge is not None]
        inside = any((0 <= u < width and 0 <= v < height) for edge in seen for u, v in edge)
        paths.append("".join(f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" for a, b in seen) if inside else "")
    return paths


def _edge(
    start_3: NDArray[np.float64], end_3: NDArray[np.float64], intrinsics_33: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Pixels [2, 2] of an edge cut at the near plane, or None where it lies behind."""
    ends_23 = np.stack([start_3, end_3])
    depth_2 = ends_23[:, 2]
    if (depth_2 < NEAR_M).all():
        return None
    if (depth_2 < NEAR_M).any():
        behind = int(np.argmin(depth_2))
        share = (NEAR_M - depth_2[behind]) / (depth_2[1 - behind] - depth_2[behind])
        ends_23[behind] += share * (ends_23[1 - behind] - ends_23[behind])
    pixels_23 = ends_23 @ intrinsics_33.T
    return np.asarray(np.clip(pixels_23[:, :2] / pixels_23[:, 2:], -1e4, 1e4), dtype=np.float64)


def _bev(frame: Frame, boxes: Mapping[str, Boxes], half_extent_m: float) -> Picture:
    overlays = [
        Overlay(kind=kind, label=_label(found, m), path=path)
        for kind, found in boxes.items()
        for m, path in enumerate(_bev_paths(found, half_extent_m))
        if path
    ]
    image = _points_image(frame.points_p5, half_extent_m)
    return Picture(
        name="bird's-eye view", uri=_uri(image, "PNG"), width=BEV_PIXELS, height=BEV_PIXELS, overlays=tuple(overlays)
    )


def _points_image(points_p5: NDArray[np.float32], half_extent_m: float) -> Image.Image:
    """Points as a transparent picture in a tone that reads on light and dark grounds; higher points are cooler."""
    xy_p2 = _bev_pixels(points_p5[:, :2].astype(np.float64), half_extent_m)
    columns, rows = np.floor(xy_p2).astype(np.int64).T
    keep = (columns >= 0) & (columns < BEV_PIXELS) & (rows >= 0) & (rows < BEV_PIXELS)
    order = np.argsort(points_p5[keep, 2], kind="stable")
    columns, rows, height = columns[keep][order], rows[keep][order], points_p5[keep, 2][order]
    share_p1 = np.clip((height + 2.0) / 4.0, 0.0, 1.0)[:, None]
    low, high = np.array([138.0, 146.0, 158.0]), np.array([84.0, 124.0, 190.0])
    canvas = np.zeros((BEV_PIXELS, BEV_PIXELS, 4), np.uint8)
    canvas[rows, columns, :3] = np.rint(low + share_p1 * (high - low))
    canvas[rows, columns, 3] = 215
    return Image.fromarray(canvas, "RGBA")


def _bev_paths(boxes: Boxes, half_extent_m: float) -> list[str]:
    """Footprint and heading line of each box; empty where its centre lies outside the picture."""
    paths = []
    for x, y, _, length, width, _, yaw in boxes.geometry_m9[:, :7].astype(np.float64):
        if max(abs(x), abs(y)) > half_extent_m:
            paths.append("")
            continue
        along, across = (
            np.array([np.cos(yaw), np.sin(yaw)]) * length / 2,
            np.array([-np.sin(yaw), np.cos(yaw)]) * width / 2,
        )
        centre = np.array([x, y])
        ring = np.stack(
            [centre + along + across, centre + along - across, centre - along - across, centre - along + across]
        )
        ring_42 = _bev_pixels(ring, half_extent_m)
        nose_22 = _bev_pixels(np.stack([centre + along, centre + along * 1.5]), half_extent_m)
        outline = "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in ring_42) + "Z"
        paths.append(outline + "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in nose_22))
    return paths


def _bev_pixels(metres_p2: NDArray[np.float64], half_extent_m: float) -> NDArray[np.float64]:
    """LiDAR x to the right and y up, as the sensor is mounted: the vehicle drives upwards."""
    scale = BEV_PIXELS / (2 * half_extent_m)
    return np.stack([(metres_p2[:, 0] + half_extent_m) * scale, (half_extent_m - metres_p2[:, 1]) * scale], axis=1)


def _label(boxes: Boxes, index: int) -> str:
    return f"{CLASS_NAMES[int(boxes.labels_m[index])]} {boxes.scores_m[index]:.2f}"


def _uri(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, quality=JPEG_QUALITY, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
