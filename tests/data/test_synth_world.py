"""Promises of the generator itself: determinism, caching, geometry of the ray casts."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from altermoma.data.synth import cached_world, write_world
from altermoma.data.synth.camera import Canvas, pixel_boxes, render, view_of
from altermoma.data.synth.lidar import RANGE_SIGMA, scan
from altermoma.data.synth.mounting import CAMERAS, LIDAR
from altermoma.data.synth.road import Road
from altermoma.data.synth.slabs import intersect
from altermoma.data.synth.world import SceneWorld
from altermoma.errors import DataError, StorageError


def _digest(root: Path, scene: str = "") -> dict[str, str]:
    files = (p for p in root.rglob("*") if p.is_file() and scene in p.name)
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def world() -> SceneWorld:
    return SceneWorld(3, "scene-0061", 2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scene-0061 and scene-0103, one key frame each."""
    return write_world(tmp_path_factory.mktemp("pair") / "world", scenes=2, keyframes=1, jobs=1)


def test_bytes_depend_on_the_arguments_only(pair: Path, tmp_path: Path) -> None:
    one = _digest(pair)
    assert one == _digest(write_world(tmp_path / "two", scenes=2, keyframes=1, jobs=2))
    other = _digest(write_world(tmp_path / "other", names=["scene-0061"], seed=8, keyframes=1, jobs=1))
    assert not set(one.values()) & {v for k, v in other.items() if k.startswith(("samples/", "sweeps/", "maps/"))}


def test_a_scene_does_not_depend_on_its_companions(pair: Path, tmp_path: Path) -> None:
    alone = _digest(write_world(tmp_path / "alone", names=["scene-0103"], keyframes=1, jobs=1), "scene-0103")
    assert len(alone) == 1 + 2 + 6 + 5
    assert alone == _digest(pair, "scene-0103")


def test_workers_end_with_their_parent() -> None:
    """The worker inherits its dead parent's standard output, which is closed, ending this call, once both are gone."""
    watch = "from altermoma.data.synth.writer import _die_with; _die_with(int(sys.argv[1]))"
    worker = f"import sys, time; {watch}; time.sleep(60)"
    launch = f"subprocess.Popen([sys.executable, '-c', {worker!r}, str(os.getpid())])"
    parent = f"import os, subprocess, sys; {launch}; os._exit(0)"
    subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, timeout=50, check=True)


def test_a_killed_writer_goes_on_by_scene(tmp_path: Path) -> None:
    names = ["scene-0061", "scene-0103"]
    code = (
        "import sys; from altermoma.data.synth import write_world; "
        f"write_world(sys.argv[1], names={names!r}, keyframes=1, jobs=1)"
    )
    root, draft = tmp_path / "cut", tmp_path / ".cut.unfinished"
    first = draft / "scenes" / f"{names[0]}.json"
    with subprocess.Popen([sys.executable, "-c", code, str(root)]) as process:
        while not first.is_file():
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    assert not root.exists()
    stamps = {p: p.stat().st_mtime_ns for p in (draft / "world").rglob(f"*{names[0]}*")}
    assert stamps
    assert _digest(write_world(root, names=names, keyframes=1, jobs=1)) == _digest(
        write_world(tmp_path / "whole", names=names, keyframes=1, jobs=1)
    )
    assert {root / p.relative_to(draft / "world"): stamp for p, stamp in stamps.items()} == {
        p: p.stat().st_mtime_ns for p in root.rglob(f"*{names[0]}*")
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "whole"]


def test_the_rest_of_another_world_is_not_taken_over(tmp_path: Path) -> None:
    draft = tmp_path / ".new.unfinished"
    (draft / "scenes").mkdir(parents=True)
    (draft / "scenes" / "scene-0061.json").write_text("{}")
    (draft / "key").write_text("another")
    root = write_world(tmp_path / "new", names=["scene-0061"], keyframes=1, jobs=1)
    assert len(list(root.rglob("*scene-0061*"))) > 5


def test_two_writers_of_one_world(tmp_path: Path) -> None:
    (tmp_path / ".new.unfinished").mkdir()
    with (tmp_path / ".new.unfinished" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process"):
            write_world(tmp_path / "new", names=["scene-0061"], keyframes=1, jobs=1)


def test_cache(tmp_path: Path) -> None:
    first = cached_world(1, 7, keyframes=1, jobs=1, cache=tmp_path)
    stamp = (first / "v1.0-mini" / "scene.json").stat().st_mtime_ns
    assert cached_world(1, 7, keyframes=1, jobs=1, cache=tmp_path) == first
    assert (first / "v1.0-mini" / "scene.json").stat().st_mtime_ns == stamp
    assert cached_world(1, 8, keyframes=1, jobs=1, cache=tmp_path) != first
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({p.name for p in tmp_path.glob("synth-*")})


def test_cache_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    whole = cached_world(1, 7, keyframes=1, jobs=1, cache=tmp_path)
    (whole / "v1.0-mini" / "scene.json").unlink()
    (tmp_path / f".{whole.name}.killed" / whole.name).mkdir(parents=True)
    again = cached_world(1, 7, keyframes=1, jobs=1, cache=tmp_path)
    assert (again / "v1.0-mini" / "scene.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == [whole.name, f"{whole.name}.lock"]


def test_cache_is_written_once_by_processes_that_want_it_at_once(tmp_path: Path) -> None:
    """A world that is replaced while another process reads it would show as dead cameras."""
    code = (
        "import pathlib, sys; from altermoma.data.synth import cached_world; "
        "root = cached_world(1, 7, keyframes=1, jobs=1, cache=pathlib.Path(sys.argv[1])); "
        "print((root / 'v1.0-mini').stat().st_ino)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate(timeout=120)[0] for process in running)
    assert first == second != ""


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="not an empty folder"):
        write_world(tmp_path / "full", scenes=1, keyframes=1, jobs=1)
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"
    with pytest.raises(DataError, match="scenes"):
        write_world(tmp_path / "new", scenes=5000)
    with pytest.raises(DataError, match="key frames"):
        write_world(tmp_path / "new", scenes=1, keyframes=0)
    with pytest.raises(DataError, match="twice"):
        write_world(tmp_path / "new", names=["scene-0061", "scene-0061"])
    with pytest.raises(StorageError):
        write_world(tmp_path / "full" / "mine.txt" / "sub" / "new", scenes=1, keyframes=1, jobs=1)
    assert not (tmp_path / "new").exists()


def test_road_coordinates_invert_positions() -> None:
    rng = np.random.default_rng(0)
    for curvature in (1 / 130, -1 / 130, 1e-5, -1e-5):
        road = Road(heading=float(rng.uniform(-3, 3)), curvature=curvature, origin=(50.0, 70.0))
        s, t = rng.uniform(-60, 120, 200), rng.uniform(-40, 40, 200)
        back_s, back_t = road.coordinates(*road.position(s, t))
        np.testing.assert_allclose(back_s, s, atol=1e-6)
        np.testing.assert_allclose(back_t, t, atol=1e-6)


def test_slab_test_against_marching() -> None:
    """The entry is where small steps along the ray first come inside."""
    rng = np.random.default_rng(1)
    half = np.array([1.0, 0.5, 0.8])
    origin = (4.0, -3.0, 1.5)
    target = rng.uniform(-1.4, 1.4, (200, 3)) * half
    direction = target - origin
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    entry, axis, hit = intersect(origin, tuple(direction.T), half)  # type: ignore[arg-type]
    steps = np.arange(0.0, 10.0, 1e-3)
    for i in range(len(target)):
        inside = (np.abs(np.asarray(origin) + steps[:, None] * direction[i]) <= half).all(axis=1)
        if inside.sum() > 3:
            assert hit[i]
            assert entry[i] == pytest.approx(steps[inside.argmax()], abs=2e-3)
            point = np.abs(np.asarray(origin) + entry[i] * direction[i]) / half
            assert point[axis[i]] == pytest.approx(1.0, abs=1e-5)
        elif not inside.any():
            assert not hit[i] or entry[i] > 0
    assert 20 < hit.sum() < 200


def test_lidar_points_lie_on_ground_or_cuboids(world: SceneWorld) -> None:
    points = scan(world, 0.0, np.random.default_rng(2)).astype(np.float64)
    ego = points[:, :3] @ LIDAR.ego_from_sensor().T + LIDAR.translation
    cuboids = world.cuboids(0.0)
    gap = np.abs(ego[:, 2])
    for centre, half, yaw in zip(cuboids.centre_p3, cuboids.half_p3, cuboids.yaw_p, strict=True):
        c, s = np.cos(yaw), np.sin(yaw)
        offset = ego - centre
        local = np.stack([c * offset[:, 0] + s * offset[:, 1], c * offset[:, 1] - s * offset[:, 0], offset[:, 2]], 1)
        outside = np.linalg.norm(np.maximum(np.abs(local) - half, 0.0), axis=1)
        depth = np.min(half - np.abs(local), axis=1)
        gap = np.minimum(gap, np.where(outside > 0, outside, np.maximum(depth, 0.0)))
    assert len(points) > 8000
    assert np.quantile(gap, 0.999) < 5 * RANGE_SIGMA
    assert set(np.unique(points[:, 4])) <= set(range(32))
    assert points[:, 3].min() >= 0
    assert points[:, 3].max() <= 255


def test_pixel_boxes_hold_every_drawn_pixel(world: SceneWorld) -> None:
    """A whole-image ray cast of each cuboid hits nothing outside its pixel box."""
    view = view_of(CAMERAS[3])
    canvas = Canvas(world, view, 0.0)
    boxes = pixel_boxes(view, canvas.cuboids)
    hits = 0
    for i in np.argsort(np.hypot(*canvas.cuboids.centre_p3[:, :2].T))[:40]:
        canvas.depth[...] = np.inf
        canvas.owner[...] = -1
        canvas._cuboid(int(i), slice(0, 360), slice(0, 640))
        rows, columns = np.nonzero(canvas.owner >= 0)
        hits += len(rows)
        if len(rows):
            u0, v0, u1, v1 = boxes[i]
            assert u0 <= columns.min()
            assert columns.max() < u1
            assert v0 <= rows.min()
            assert rows.max() < v1
    assert hits > 1000


def test_rendering_counts_and_noise(world: SceneWorld) -> None:
    image, shown, covered = render(world, CAMERAS[0], 0.0, np.random.default_rng(3))
    again, _, _ = render(world, CAMERAS[0], 0.0, np.random.default_rng(3))
    other, _, _ = render(world, CAMERAS[0], 0.0, np.random.default_rng(4))
    assert image.dtype == np.uint8
    assert (image == again).all()
    assert (image != other).any()
    assert (shown <= covered).all()
    assert shown.sum() > 0


def test_lookalikes_have_one_shape(world: SceneWorld) -> None:
    """What the LiDAR must not tell apart is built from the same cuboids."""
    from altermoma.data.synth.catalogue import KINDS
    from altermoma.data.synth.shapes import build_parts

    for a, b in (("truck", "construction_vehicle"), ("bus", "trailer"), ("motorcycle", "bicycle")):
        assert KINDS[a].size == KINDS[b].size
        assert KINDS[a].intensity == KINDS[b].intensity
        size = np.asarray(KINDS[a].size)
        left, right = (build_parts(KINDS[k], size, np.random.default_rng(5)) for k in (a, b))
        for p, q in zip(left, right, strict=True):
            assert (p.centre, p.half, p.density) == (q.centre, q.half, q.density)
        colours = [part[0].texture[..., :3].astype(float).mean((0, 1, 2)) for part in (left, right)]
        assert np.abs(colours[0] - colours[1]).max() > 20
