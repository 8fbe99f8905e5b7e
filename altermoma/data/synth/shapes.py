"""Objects as a few textured cuboids that fill the annotated box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altermoma.data.synth import textures
from altermoma.data.synth.catalogue import RIDER_HEIGHT, Colour, Kind
from altermoma.data.synth.textures import Texture

SKIN: tuple[Colour, ...] = ((226, 180, 150), (160, 115, 85), (105, 72, 55))
JEANS: tuple[Colour, ...] = ((45, 60, 110), (40, 40, 46), (70, 60, 55))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A cuboid of an object.

    Attributes:
        centre: offset in the object's frame (x forward, z up from the ground), metres.
        half: half extents, metres.
        texture: face pictures.
        density: share of LiDAR rays that it stops.
    """

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    texture: Texture
    density: float = 1.0


def _part(
    size: NDArray[np.float64], span: tuple[tuple[float, float], ...], texture: Texture, density: float = 1.0
) -> Part:
    """A part that spans the given fractions (low, high in -1..1 along x and y, 0..1 along z) of the box."""
    (x0, x1), (y0, y1), (z0, z1) = span
    l, w, h = (float(v) for v in size)
    return Part(
        centre=((x0 + x1) * l / 4, (y0 + y1) * w / 4, (z0 + z1) * h / 2),
        half=((x1 - x0) * l / 4, (y1 - y0) * w / 4, (z1 - z0) * h / 2),
        texture=texture,
        density=density,
    )


Builder = Callable[[NDArray[np.float64], Colour, np.random.Generator], list[Part]]
_FULL = (-1.0, 1.0)


def _car(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    back = rng.uniform(-0.95, -0.7)
    return [
        _part(size, (_FULL, _FULL, (0.08, 0.58)), textures.car_body(colour)),
        _part(size, ((back, 0.4), (-0.88, 0.88), (0.58, 1.0)), textures.car_cabin(colour)),
    ]


def _cab_and_box(size: NDArray[np.float64], rng: np.random.Generator, cab: Texture, box: Texture) -> list[Part]:
    split = rng.uniform(0.4, 0.55)
    top = rng.uniform(0.78, 0.9)
    return [
        _part(size, ((split, 1.0), (-0.95, 0.95), (0.05, top)), cab),
        _part(size, ((-1.0, split - 0.04), _FULL, (0.05, 1.0)), box),
    ]


def _truck(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return _cab_and_box(size, rng, textures.truck_cab(colour), textures.cargo_box(colour))


def _construction(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return _cab_and_box(size, rng, textures.truck_cab(colour), textures.hazard_box(colour))


def _bus(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [_part(size, (_FULL, _FULL, (0.04, 1.0)), textures.bus_shell(colour))]


def _trailer(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [_part(size, (_FULL, _FULL, (0.04, 1.0)), textures.trailer_shell(colour))]


def _cycle(size: NDArray[np.float64], frame: Texture, clothes: Colour, rng: np.random.Generator) -> list[Part]:
    ridden = size[2] > 0.5 * (RIDER_HEIGHT + 1.15)
    top = 0.62 if ridden else 1.0
    parts = [_part(size, (_FULL, (-0.22, 0.22), (0.0, top)), frame, density=0.7)]
    if ridden:
        skin = SKIN[rng.integers(len(SKIN))]
        parts.append(_part(size, ((-0.35, 0.15), (-0.7, 0.7), (0.45, 0.86)), textures.plain(clothes)))
        parts.append(_part(size, ((-0.2, 0.1), (-0.35, 0.35), (0.86, 1.0)), textures.plain(skin)))
    return parts


def _motorcycle(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return _cycle(size, textures.cycle_frame(colour, engine=True), (30, 26, 30), rng)


def _bicycle(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return _cycle(size, textures.cycle_frame(colour, engine=False), (190, 240, 60), rng)


def _pedestrian(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    skin, legs = SKIN[rng.integers(len(SKIN))], JEANS[rng.integers(len(JEANS))]
    return [
        _part(size, ((-0.7, 0.7), (-0.75, 0.75), (0.0, 0.46)), textures.trousers(legs)),
        _part(size, ((-0.8, 0.8), _FULL, (0.46, 0.84)), textures.plain(colour)),
        _part(size, ((-0.4, 0.4), (-0.4, 0.4), (0.84, 1.0)), textures.plain(skin)),
    ]


def _cone(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [
        _part(size, (_FULL, _FULL, (0.0, 0.12)), textures.plain((40, 40, 40))),
        _part(size, ((-0.75, 0.75), (-0.75, 0.75), (0.12, 1.0)), textures.cone_body(colour)),
    ]


def _bin(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [
        _part(size, (_FULL, _FULL, (0.0, 0.12)), textures.plain((60, 60, 60))),
        _part(size, ((-0.75, 0.75), (-0.75, 0.75), (0.12, 1.0)), textures.plain(colour, rng=rng, grain=4.0)),
    ]


def _barrier(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [_part(size, (_FULL, _FULL, (0.0, 1.0)), textures.barrier_panel(colour))]


def _block(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [_part(size, (_FULL, _FULL, (0.0, 1.0)), textures.plain(colour, rng=rng, grain=4.0))]


def _bush(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [
        _part(size, (_FULL, _FULL, (0.0, 0.7)), textures.plain(colour, rng=rng, grain=14.0), density=0.8),
        _part(size, ((-0.6, 0.6), (-0.6, 0.6), (0.7, 1.0)), textures.plain(colour, rng=rng, grain=14.0), density=0.8),
    ]


def _tree(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [
        _part(size, ((-0.12, 0.12), (-0.12, 0.12), (0.0, 0.45)), textures.plain((92, 74, 58), rng=rng, grain=6.0)),
        _part(size, (_FULL, _FULL, (0.45, 0.85)), textures.plain(colour, rng=rng, grain=16.0), density=0.7),
        _part(size, ((-0.6, 0.6), (-0.6, 0.6), (0.85, 1.0)), textures.plain(colour, rng=rng, grain=16.0), density=0.7),
    ]


def _car_mural(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [_part(size, (_FULL, _FULL, (0.0, 1.0)), textures.car_picture(colour))]


def _person_poster(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    skin, legs = SKIN[rng.integers(len(SKIN))], JEANS[rng.integers(len(JEANS))]
    return [_part(size, (_FULL, _FULL, (0.0, 1.0)), textures.person_picture(colour, skin, legs))]


def _building(size: NDArray[np.float64], colour: Colour, rng: np.random.Generator) -> list[Part]:
    return [_part(size, (_FULL, _FULL, (0.0, 1.0)), textures.facade(colour, rng))]


_BUILDERS: dict[str, Builder] = {
    "car": _car, "truck": _truck, "construction": _construction, "bus": _bus, "trailer": _trailer,
    "motorcycle": _motorcycle, "bicycle": _bicycle, "pedestrian": _pedestrian, "cone": _cone, "barrier": _barrier,
    "bin": _bin, "planter": _block, "block": _block, "bush": _bush, "tree": _tree,
    "car_mural": _car_mural, "person_poster": _person_poster, "building": _building,
}  # fmt: skip


def build_parts(kind: Kind, size: NDArray[np.float64], rng: np.random.Generator) -> list[Part]:
    """The cuboids of one object of `kind` with box `size` (length, width, height)."""
    colour = kind.colours[rng.integers(len(kind.colours))]
    jitter = rng.integers(-12, 13, 3)
    r, g, b = (int(np.clip(c + d, 0, 255)) for c, d in zip(colour, jitter, strict=True))
    return _BUILDERS[kind.shape](size, (r, g, b), rng)
