"""The front against its definition, and a drawing that holds every point."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np

from altermoma.report.pareto import Point, draw, front, joint_table, svg


def points() -> list[Point]:
    pairs = np.random.default_rng(4).uniform((5, 60), (50, 80), (40, 2)).tolist()
    return [Point(title=f"v{i}", ms=ms, map_points=score) for i, (ms, score) in enumerate(pairs)]


def beats(q: Point, p: Point) -> bool:
    return q.ms <= p.ms and q.map_points >= p.map_points and (q.ms < p.ms or q.map_points > p.map_points)


def test_the_front_is_what_no_other_point_beats() -> None:
    every = points()
    expected = [p for p in every if not any(beats(q, p) for q in every)]
    assert front(every) == sorted(expected, key=lambda p: p.ms)


def test_the_drawing_is_valid_and_shows_every_point_inside_it() -> None:
    plot = draw(points())
    assert plot is not None
    root = ET.fromstring(svg(plot))
    circles = [item for item in root.iter() if item.tag.endswith("circle")]
    assert len(circles) == 40
    assert all(0 <= float(c.attrib["cx"]) <= plot.width and 0 <= float(c.attrib["cy"]) <= plot.height for c in circles)
    fast, slow = sorted(plot.dots, key=lambda dot: dot.point.ms)[:: len(plot.dots) - 1]
    assert fast.x < slow.x
    assert draw(points()[:2]) is None


def test_the_table_gives_times_against_the_base() -> None:
    named = {"a": Point(title="dense", ms=30.0, map_points=80.0), "b": Point(title="int8", ms=10.0, map_points=79.8)}
    assert "| int8 | 79.80 | 10.0 | 3.00 |  | yes |" in joint_table(named, "a")
