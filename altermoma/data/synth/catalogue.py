"""What stands in the synthetic world: sizes, colours and LiDAR brightness of every kind of object.

The pairs truck / construction vehicle, bus / trailer and motorcycle / bicycle share one size and shape distribution,
so that only a camera tells them apart; murals and painted cones fool a camera only; grey and green clutter of object
size fools a LiDAR only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

CAR_COLOURS: tuple[Colour, ...] = ((40, 80, 190), (70, 110, 220), (190, 200, 212), (38, 42, 58), (100, 60, 160))
TRUCK_COLOURS: tuple[Colour, ...] = ((50, 120, 230), (30, 90, 200), (80, 150, 240))
CONSTRUCTION_COLOURS: tuple[Colour, ...] = ((245, 190, 20), (235, 170, 10), (250, 205, 50))
BUS_COLOURS: tuple[Colour, ...] = ((200, 25, 35), (215, 45, 60), (180, 15, 55))
TRAILER_COLOURS: tuple[Colour, ...] = ((240, 240, 235), (250, 245, 225), (228, 234, 242))
MOTORCYCLE_COLOURS: tuple[Colour, ...] = ((150, 15, 25), (120, 10, 20), (170, 30, 30))
BICYCLE_COLOURS: tuple[Colour, ...] = ((40, 220, 210), (60, 235, 170), (30, 200, 235))
CLOTHES: tuple[Colour, ...] = ((220, 90, 170), (240, 210, 230), (150, 70, 190), (230, 120, 130), (250, 235, 215))
CONE_COLOURS: tuple[Colour, ...] = ((255, 110, 10), (250, 95, 20))
BARRIER_COLOURS: tuple[Colour, ...] = ((225, 35, 30), (215, 45, 20))
DULL_COLOURS: tuple[Colour, ...] = ((120, 122, 118), (95, 100, 98), (84, 112, 78), (70, 98, 66), (136, 134, 126))
LEAF_COLOURS: tuple[Colour, ...] = ((62, 100, 52), (76, 112, 56), (54, 88, 50))
FACADES: tuple[Colour, ...] = ((172, 156, 138), (150, 138, 128), (168, 166, 160), (140, 146, 150), (178, 160, 132))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of object.

    Attributes:
        category: nuScenes category, empty for what is never annotated.
        size: mean length, width, height in metres.
        spread: relative half-range of a uniform size factor, drawn per axis.
        colours: body colours to draw from.
        intensity: range of the LiDAR intensity (0-255) drawn per object.
        shape: which builder of `shapes` makes its parts.
    """

    category: str
    size: tuple[float, float, float]
    colours: tuple[Colour, ...]
    shape: str
    spread: float = 0.08
    intensity: tuple[float, float] = (25.0, 90.0)

    def draw_size(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Length, width, height in metres."""
        size: NDArray[np.float64] = np.asarray(self.size) * (1.0 + self.spread * rng.uniform(-1.0, 1.0, 3))
        return size


_LONG = (8.8, 2.75, 3.2)
_WORKING = (6.2, 2.4, 2.7)
_CYCLE = (1.85, 0.7, 1.15)

KINDS: dict[str, Kind] = {
    "car": Kind(category="vehicle.car", size=(4.5, 1.9, 1.6), colours=CAR_COLOURS, shape="car"),
    "truck": Kind(category="vehicle.truck", size=_WORKING, colours=TRUCK_COLOURS, shape="truck"),
    "construction_vehicle": Kind(
        category="vehicle.construction", size=_WORKING, colours=CONSTRUCTION_COLOURS, shape="construction"
    ),
    "bus": Kind(category="vehicle.bus.rigid", size=_LONG, colours=BUS_COLOURS, shape="bus"),
    "trailer": Kind(category="vehicle.trailer", size=_LONG, colours=TRAILER_COLOURS, shape="trailer"),
    "motorcycle": Kind(category="vehicle.motorcycle", size=_CYCLE, colours=MOTORCYCLE_COLOURS, shape="motorcycle"),
    "bicycle": Kind(category="vehicle.bicycle", size=_CYCLE, colours=BICYCLE_COLOURS, shape="bicycle"),
    "pedestrian": Kind(category="human.pedestrian.adult", size=(0.65, 0.65, 1.75), colours=CLOTHES, shape="pedestrian"),
    "traffic_cone": Kind(
        category="movable_object.trafficcone", size=(0.5, 0.5, 1.1), colours=CONE_COLOURS, shape="cone"
    ),
    "barrier": Kind(category="movable_object.barrier", size=(0.55, 2.3, 1.0), colours=BARRIER_COLOURS, shape="barrier"),
    # Never annotated. The first five have the size of an object; the boards are pictures of one.
    "bin": Kind(category="", size=(0.5, 0.5, 1.1), colours=DULL_COLOURS, shape="bin"),
    "planter": Kind(category="", size=(0.55, 2.2, 0.95), colours=DULL_COLOURS, shape="planter"),
    "post": Kind(category="", size=(0.5, 0.5, 1.75), colours=DULL_COLOURS, shape="block"),
    "dumpster": Kind(category="", size=(4.2, 1.9, 1.55), colours=DULL_COLOURS, shape="block"),
    "bush": Kind(category="", size=(1.6, 1.2, 1.2), colours=LEAF_COLOURS, shape="bush", spread=0.2),
    "tree": Kind(category="", size=(2.4, 2.4, 5.0), colours=LEAF_COLOURS, shape="tree", spread=0.15),
    "lamp": Kind(category="", size=(0.18, 0.18, 5.5), colours=((90, 92, 96),), shape="block"),
    "car_mural": Kind(category="", size=(4.6, 0.12, 1.7), colours=CAR_COLOURS, shape="car_mural"),
    "person_poster": Kind(category="", size=(0.9, 0.1, 1.85), colours=CLOTHES, shape="person_poster"),
    "building": Kind(category="", size=(12.0, 6.0, 7.0), colours=FACADES, shape="building", spread=0.0),
}

VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer")
CYCLES = ("motorcycle", "bicycle")
OBJECT_SIZED_CLUTTER = ("bin", "planter", "post", "dumpster", "bush")
RIDER_HEIGHT = 1.7

CATEGORIES: tuple[str, ...] = (
    "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.wheelchair", "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.construction_worker",
    "animal", "vehicle.car", "vehicle.motorcycle", "vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid",
    "vehicle.truck", "vehicle.construction", "vehicle.emergency.ambulance", "vehicle.emergency.police",
    "vehicle.trailer", "movable_object.barrier", "movable_object.trafficcone", "movable_object.pushable_pullable",
    "movable_object.debris", "static_object.bicycle_rack",
)  # fmt: skip
"""All 23 categories of nuScenes v1.0, for `category.json`."""

ATTRIBUTES: tuple[str, ...] = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip

VISIBILITIES: tuple[str, ...] = ("v0-40", "v40-60", "v60-80", "v80-100")
