"""Places objects along a road. Each keeps its lateral offset and moves along s at the constant speed of its lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from altermoma.data.synth import road as rd
from altermoma.data.synth.catalogue import CYCLES, KINDS, OBJECT_SIZED_CLUTTER, RIDER_HEIGHT, VEHICLES

REACH = 34.0
EGO_CLEAR = (-7.5, 8.5)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One object. s, t: position at time 0 (m); speed along s (m/s, signed); yaw relative to the road (rad);
    size: length, width, height (m); attribute: nuScenes attribute, empty for none."""

    kind: str
    s: float
    t: float
    yaw: float
    speed: float
    size: NDArray[np.float64]
    attribute: str


@dataclass(kw_only=True)
class _Ground:
    """What is already taken on the static ground."""

    taken: list[Placed] = field(default_factory=list)

    def free(self, new: Placed, margin: float = 0.35) -> bool:
        return all(not _overlap(new, old, margin) for old in self.taken)


def _ordered(a: float, b: float) -> tuple[float, float]:
    return min(a, b), max(a, b)


def _corners(box: Placed, margin: float) -> NDArray[np.float64]:
    half = box.size[:2] / 2 + margin
    signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)], float)
    c, s = np.cos(box.yaw), np.sin(box.yaw)
    return np.asarray(signs * half @ np.array([[c, s], [-s, c]]) + (box.s, box.t), np.float64)


def _overlap(a: Placed, b: Placed, margin: float) -> bool:
    if np.hypot(a.s - b.s, a.t - b.t) > np.hypot(*a.size[:2]) / 2 + np.hypot(*b.size[:2]) / 2 + 2 * margin:
        return False
    pa, pb = _corners(a, margin), _corners(b, margin)
    for yaw in (a.yaw, a.yaw + np.pi / 2, b.yaw, b.yaw + np.pi / 2):
        axis = np.array([np.cos(yaw), np.sin(yaw)])
        qa, qb = pa @ axis, pb @ axis
        if qa.max() < qb.min() or qb.max() < qa.min():
            return False
    return True


def _deck(rng: np.random.Generator, cards: tuple[str, ...]) -> Iterator[str]:
    """Endless draw without replacement, so that every class comes up in every scene."""
    while True:
        for i in rng.permutation(len(cards)):
            yield cards[i]


_FIXED_ATTRIBUTES = {
    "pedestrian": "pedestrian.standing",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
}


def _still_attribute(kind: str) -> str:
    return "vehicle.parked" if kind in VEHICLES else _FIXED_ATTRIBUTES.get(kind, "")


class LayoutMaker:
    """Draws the objects of one scene.

    Args:
        rng: source of all randomness.
        travel: metres that the ego drives during the scene.
        duration: seconds.
    """

    def __init__(self, rng: np.random.Generator, travel: float, duration: float) -> None:
        self.rng, self.travel, self.duration = rng, travel, duration
        self.vehicles = _deck(rng, (*VEHICLES, "bus", "trailer"))
        # No long ones at the kerb, where they would hide everything behind them.
        self.parked = _deck(rng, ("car", "truck", "car", "construction_vehicle", "car"))
        self.moving_vehicles = _deck(rng, ("car", *VEHICLES))
        self.cycles = _deck(rng, CYCLES)
        self.small = _deck(rng, ("pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier"))
        self.clutter = _deck(rng, OBJECT_SIZED_CLUTTER)
        self.boards = _deck(rng, ("car_mural", "person_poster"))
        self.patches = _deck(rng, ("vehicle", "site", "vehicle", "plaza", "vehicle", "green"))
        self.ground = _Ground()
        self.movers: list[Placed] = []

    def make(self, ego_speed: float) -> list[Placed]:
        """All objects; ego starts at s = 0 in the lane at t = -LANE_CENTRE."""
        rng = self.rng
        self._lane(-rd.LANE_CENTRE, ego_speed, 0.0, self.moving_vehicles, (12.0, 28.0))
        self._lane(rd.LANE_CENTRE, -rng.uniform(2.0, 8.0), np.pi, self.moving_vehicles, (12.0, 28.0))
        self._lane(-rd.CYCLE_CENTRE, rng.uniform(2.0, 6.0), 0.0, self.cycles, (16.0, 34.0))
        self._lane(rd.CYCLE_CENTRE, -rng.uniform(2.0, 6.0), np.pi, self.cycles, (16.0, 34.0))
        for side in (-1.0, 1.0):
            direction = 0.0 if side < 0 else np.pi
            pace = float(rng.uniform(0.5, 1.5) * rng.choice([-1.0, 1.0]))
            walkers = iter(lambda: "pedestrian", None)
            self._lane(side * rd.WALK_FAR, pace, 0.0 if pace > 0 else np.pi, walkers, (16.0, 34.0))
            self._row(side * rd.PARKING_CENTRE, direction, lambda: next(self.parked), (14.0, 30.0))
            self._row(side * rd.WALK_NEAR, direction, self._pavement_kind, (7.0, 14.0))
            self._apron(side)
            self._boards_and_lamps(side)
            self._buildings(side)
        return [*self.ground.taken, *self.movers]

    def _pavement_kind(self) -> str:
        kind = next(self.clutter) if self.rng.random() < 0.3 else next(self.small)
        # A dumpster would reach into the walkers' way.
        return "planter" if kind == "dumpster" else kind

    def _placed(self, kind: str, s: float, t: float, yaw: float, speed: float = 0.0) -> Placed:
        size = KINDS[kind].draw_size(self.rng)
        attribute = _still_attribute(kind)
        if speed:
            attribute = "pedestrian.moving" if kind == "pedestrian" else "vehicle.moving"
        if kind in CYCLES and speed:
            size[2] = RIDER_HEIGHT * self.rng.uniform(0.95, 1.05)
            attribute = "cycle.with_rider"
        return Placed(kind=kind, s=s, t=t, yaw=yaw, speed=speed, size=size, attribute=attribute)

    def _lane(self, t: float, speed: float, yaw: float, kinds: Iterator[str], gaps: tuple[float, float]) -> None:
        """Movers at one speed. Covers every s that comes within REACH of the ego at some time."""
        rng = self.rng
        shift = self.travel - speed * self.duration
        low, high = min(-REACH, shift - REACH), max(REACH, shift + REACH)
        ego_lane = t == -rd.LANE_CENTRE
        cursor = low + rng.uniform(0.0, gaps[1] / 2)
        while cursor < high:
            placed = self._placed(
                next(kinds), 0.0, t + float(rng.normal(0.0, 0.08)), yaw + float(rng.normal(0, 0.02)), speed
            )
            if not speed:
                placed = replace(placed, attribute="vehicle.stopped")
            half = placed.size[0] / 2
            if ego_lane and cursor < EGO_CLEAR[1] and cursor + 2 * half > EGO_CLEAR[0]:
                cursor = EGO_CLEAR[1] + rng.uniform(0.0, 4.0)
            self.movers.append(replace(placed, s=cursor + half))
            cursor += 2 * half + rng.uniform(*gaps)

    def _row(self, t: float, yaw: float, draw: Callable[[], str], gaps: tuple[float, float]) -> None:
        """Things standing in a row along the road."""
        rng = self.rng
        cursor = -REACH + rng.uniform(0.0, gaps[1])
        while cursor < self.travel + REACH:
            kind = draw()
            turn = float(rng.choice([0.0, np.pi])) if kind not in VEHICLES else 0.0
            spread = 0.6 if kind == "pedestrian" else 0.06
            placed = self._placed(
                kind, 0.0, t + float(rng.normal(0.0, 0.08)), yaw + turn + float(rng.normal(0.0, spread))
            )
            half = placed.size[0] / 2
            standing = replace(placed, s=cursor + half)
            if self.ground.free(standing, 0.1):
                self.ground.taken.append(standing)
            cursor += 2 * half + rng.uniform(*gaps)

    def _try(self, kind: str, s_range: tuple[float, float], t_range: tuple[float, float], yaw: float) -> None:
        """Puts the object at a free spot, or leaves it out after 12 tries."""
        for _ in range(12):
            placed = self._placed(kind, float(self.rng.uniform(*s_range)), float(self.rng.uniform(*t_range)), yaw)
            if self.ground.free(placed):
                self.ground.taken.append(placed)
                return

    def _apron(self, side: float) -> None:
        """Patches of ground beside the pavement: parked vehicles, building sites, plazas, greens."""
        rng = self.rng
        start = -REACH
        near, far = rd.PAVEMENT_END + 0.8, rd.APRON_END - 0.8
        while start < self.travel + REACH:
            end = start + rng.uniform(14.0, 19.0)
            for kind in self._patch_kinds(next(self.patches)):
                yaw = float(rng.choice([0.0, np.pi / 2, np.pi, -np.pi / 2]) + rng.normal(0.0, 0.08))
                if kind in VEHICLES:
                    middle = side * rng.uniform(17.0, 18.5)
                    self._try(
                        kind, ((start + end) / 2 - 1.0, (start + end) / 2 + 1.0), (middle - 0.5, middle + 0.5), yaw
                    )
                else:
                    turn = float(rng.uniform(-np.pi, np.pi)) if kind == "pedestrian" else yaw
                    inset = 1.4 if kind == "dumpster" else 0.0
                    self._try(kind, (start, end), _ordered(side * (near + inset), side * (far - inset)), turn)
            start = end

    def _patch_kinds(self, patch: str) -> list[str]:
        small = self.small
        if patch == "vehicle":
            return [next(self.vehicles), next(small), next(self.clutter)]
        if patch == "site":
            return ["traffic_cone", "barrier", "traffic_cone", "barrier", next(self.clutter)]
        if patch == "plaza":
            return ["pedestrian", next(self.cycles), next(small), next(self.clutter)]
        return ["tree", "bush", next(self.clutter), next(small)]

    def _boards_and_lamps(self, side: float) -> None:
        rng = self.rng
        for s in np.arange(-REACH, self.travel + REACH, 22.0):
            along = float(s + rng.uniform(0.0, 12.0))
            self._try(next(self.boards), (along, along + 6.0), _ordered(side * 12.9, side * 13.6), 0.0)
            self._try("lamp", (along, along + 6.0), (side * 8.85, side * 8.85 + 0.01), 0.0)

    def _buildings(self, side: float) -> None:
        rng = self.rng
        start = -REACH - 25.0
        while start < self.travel + REACH + 25.0:
            length, height = rng.uniform(11.0, 18.0), rng.uniform(5.0, 10.0)
            placed = self._placed(
                "building", start + length / 2, side * (rd.BUILDING_START + rng.uniform(3.0, 6.0)), 0.0
            )
            self.ground.taken.append(replace(placed, size=np.array([length, 6.0, height])))
            start += length + rng.uniform(0.5, 9.0)
