"""Face pictures of cuboids: uint8 RGBA, [6 faces, 32 rows, 32 columns, 4].

Faces are +x, -x, +y, -y, +z, -z of the part. Columns run along y (x faces) or x (others), rows along z (upwards) or y.
Alpha 0 lets the camera look through.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.data.synth.catalogue import Colour

Texture = NDArray[np.uint8]
SIDE = 32
FRONT, REAR, LEFT, RIGHT, TOP, BOTTOM = range(6)
_ROW, _COL = np.mgrid[0:SIDE, 0:SIDE]
GLASS: Colour = (28, 36, 48)
DARK: Colour = (24, 24, 26)


def plain(colour: Colour, *, rng: np.random.Generator | None = None, grain: float = 0.0) -> Texture:
    """One colour on all faces, with optional grain (standard deviation in grey levels)."""
    texture = np.empty((6, SIDE, SIDE, 4), np.uint8)
    texture[..., :3] = colour
    texture[..., 3] = 255
    if rng is not None and grain > 0:
        noisy = texture[..., :3] + rng.normal(0.0, grain, (6, SIDE, SIDE, 1))
        texture[..., :3] = np.clip(noisy, 0, 255).astype(np.uint8)
    return texture


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (min(255, int(c * factor)) for c in colour)
    return r, g, b


def _disc(row: float, col: float, radius_row: float, radius_col: float) -> NDArray[np.bool_]:
    return np.asarray(((_ROW - row) / radius_row) ** 2 + ((_COL - col) / radius_col) ** 2 <= 1.0)


def _wheels(texture: Texture, columns: tuple[int, ...], radius_row: float, radius_col: float) -> None:
    for column in columns:
        texture[LEFT : RIGHT + 1, _disc(radius_row * 0.8, column, radius_row, radius_col), :3] = DARK
        texture[LEFT : RIGHT + 1, _disc(radius_row * 0.8, column, radius_row * 0.4, radius_col * 0.4), :3] = (150,) * 3


def _lights(texture: Texture, rows: slice) -> None:
    for columns in (slice(2, 8), slice(24, 30)):
        texture[FRONT, rows, columns, :3] = (255, 250, 215)
        texture[REAR, rows, columns, :3] = (205, 20, 20)


def car_body(colour: Colour) -> Texture:
    texture = plain(colour)
    texture[:4, :4, :, :3] = _shade(colour, 0.5)
    texture[LEFT : RIGHT + 1, 6:, 15:17, :3] = _shade(colour, 0.7)
    _wheels(texture, (6, 25), 12, 4)
    _lights(texture, slice(16, 24))
    texture[FRONT, 6:13, 6:26, :3] = DARK
    return texture


def car_cabin(colour: Colour) -> Texture:
    texture = plain(colour)
    texture[:4, 3:27, 3:29, :3] = GLASS
    texture[LEFT : RIGHT + 1, :, 15:18, :3] = colour
    return texture


def truck_cab(colour: Colour) -> Texture:
    texture = plain(colour)
    texture[FRONT, 15:28, 3:29, :3] = GLASS
    texture[LEFT : RIGHT + 1, 15:28, 10:28, :3] = GLASS
    _wheels(texture, (16,), 7, 8)
    _lights(texture, slice(5, 9))
    return texture


def cargo_box(colour: Colour) -> Texture:
    pale = _shade(colour, 1.15)
    texture = plain(pale)
    texture[:4, 22:26, :, :3] = (235, 240, 250)
    texture[:4, :4, :, :3] = DARK
    _wheels(texture, (5, 24), 5, 3)
    _lights(texture, slice(4, 7))
    return texture


def hazard_box(colour: Colour) -> Texture:
    """Yellow with black hazard stripes: construction machines."""
    texture = plain(colour)
    stripes = ((_ROW + _COL) // 4) % 2 == 0
    band = (_ROW >= 5) & (_ROW < 12)
    texture[:4, stripes & band, :3] = DARK
    texture[:4, :4, :, :3] = DARK
    _wheels(texture, (5, 24), 6, 4)
    return texture


def bus_shell(colour: Colour) -> Texture:
    texture = plain(colour)
    windows = (_ROW >= 15) & (_ROW < 25) & (_COL % 6 != 0)
    texture[LEFT : RIGHT + 1, windows, :3] = GLASS
    texture[FRONT, 12:27, 2:30, :3] = GLASS
    texture[REAR, 17:26, 4:28, :3] = GLASS
    texture[:4, 28:31, :, :3] = (240, 230, 120)
    _wheels(texture, (6, 25), 5, 2)
    _lights(texture, slice(4, 7))
    return texture


def trailer_shell(colour: Colour) -> Texture:
    """Corrugated pale walls above a dark chassis with a reflective strip."""
    texture = plain(colour)
    texture[:4, :, ::4, :3] = _shade(colour, 0.85)
    texture[:4, :6, :, :3] = (70, 72, 76)
    texture[LEFT : RIGHT + 1, 6:8, :, :3] = np.where((_COL[0] // 3 % 2 == 0)[None, :, None], (200, 40, 40), 235)
    _wheels(texture, (4, 7, 26), 5, 1.6)
    return texture


def cycle_frame(colour: Colour, *, engine: bool) -> Texture:
    """Two wheels and a frame on a see-through plane; a motorcycle is filled in, a bicycle is thin."""
    texture = plain(colour)
    side = texture[LEFT]
    side[..., 3] = 0
    for column in (6, 25):
        ring = _disc(9, column, 9.5, 6.5) & ~_disc(9, column, 5.0 if engine else 6.5, 3.2 if engine else 4.2)
        side[ring] = (*(DARK if engine else _shade(colour, 0.75)), 255)
    body = (abs(_ROW - 15) < (7 if engine else 3)) & (abs(_COL - 15) < 10)
    body |= (abs(_COL - 23) < 2) & (_ROW > 9)
    body |= (abs(_COL - 9) < 2) & (_ROW > 9) & (_ROW < 25)
    side[body] = (*colour, 255)
    texture[RIGHT] = side
    texture[:2, 21:, :, 3] = 0
    texture[TOP, :, 24:, 3] = 0
    return texture


def trousers(colour: Colour) -> Texture:
    texture = plain(colour)
    texture[FRONT : REAR + 1, :24, 14:18, 3] = 0
    return texture


def cone_body(colour: Colour) -> Texture:
    texture = plain(colour)
    texture[:4, 12:20, :, :3] = (245, 245, 245)
    outside = abs(_COL - 15.5) > 16 - 11 * _ROW / SIDE
    texture[:4, outside, 3] = 0
    return texture


def barrier_panel(colour: Colour) -> Texture:
    texture = plain(colour)
    stripes = ((_ROW // 2 + _COL) // 5) % 2 == 0
    texture[:2, stripes, :3] = (245, 245, 245)
    texture[2:5, (_ROW // 8) % 2 == 0, :3] = (245, 245, 245)
    return texture


def facade(colour: Colour, rng: np.random.Generator) -> Texture:
    """A grid of windows, some of them lit."""
    texture = plain(colour, rng=rng, grain=2.0)
    lit = rng.random((4, 4, 6)) < 0.15
    for floor in range(4):
        for window in range(6):
            rows, columns = slice(floor * 8 + 2, floor * 8 + 6), slice(window * 5 + 2, window * 5 + 5)
            for face in range(4):
                glass = (210, 200, 160) if lit[face, floor, window] else (78, 88, 100)
                texture[face, rows, columns, :3] = glass
    texture[:4, :1, :, :3] = _shade(colour, 0.6)
    return texture


def car_picture(colour: Colour) -> Texture:
    """The side of a car painted on a board, in the colours of the real thing."""
    texture = plain((128, 128, 126))
    for face in (LEFT, RIGHT):
        picture = texture[face, :, :, :3]
        picture[3:18, 1:31] = colour
        picture[18:30, 7:25] = colour
        picture[19:28, 9:23] = GLASS
        picture[19:28, 15:17] = colour
        for column in (7, 24):
            picture[_disc(5, column, 6, 3)] = DARK
    return texture


def person_picture(clothes: Colour, skin: Colour, legs: Colour) -> Texture:
    """A standing person painted on a board."""
    texture = plain((128, 128, 126))
    for face in (LEFT, RIGHT):
        picture = texture[face, :, :, :3]
        picture[1:14, 10:22] = legs
        picture[1:12, 15:17] = (128, 128, 126)
        picture[14:26, 8:24] = clothes
        picture[_disc(28, 15.5, 3.5, 4)] = skin
    return texture
