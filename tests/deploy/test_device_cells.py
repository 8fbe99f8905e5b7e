"""The device's voxels and tables, the kernels run by the processor in a shuffled order: bit by bit the host's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cuda_double import FakeCuda
from kernels_on_cpu import CpuModule

from altermoma.deploy import device_kernels
from altermoma.deploy.device_cells import Cloud, DeviceCells
from altermoma.deploy.device_kernels import DeviceKernels, Pointer, PrefixSum
from altermoma.deploy.device_memory import Arena
from altermoma.errors import UnsupportedError
from altermoma.geometry import Geometry
from altermoma.ops.padding import RowCounts, Segments
from altermoma.ops.sparse_tables import SparseTableBuilder, in_rows
from altermoma.ops.voxels import Voxeliser

SWEEPS = Path(__file__).resolve().parents[3] / "shared" / "real" / "nuscenes_ten_sweeps.bin"
GEOMETRY = Geometry(point_range=(-8.0, -6.0, -3.0, 8.0, 6.0, 3.0), voxel_size=(0.4, 0.5, 0.3), max_points_per_voxel=3)
NUSCENES = Geometry(
    point_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
    voxel_size=(0.075, 0.075, 0.2),
    max_voxels=160000,
    level_rows=(240000, 120000, 60000),
    lidar_levels=3,
)
I32, F32 = np.dtype(np.int32), np.dtype(np.float32)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(device_kernels, "compile_kernels", lambda name, *_: name.encode())
    return FakeCuda(CpuModule)


def limits_of(geometry: Geometry, most: int) -> RowCounts:
    rows: Segments = (most, most, most, most)
    return RowCounts(levels=(rows,) * (geometry.lidar_levels + 1), out=most)


class Device:
    """Points in, tables out."""

    def __init__(self, cuda: FakeCuda, geometry: Geometry, capacity: int, most: int = 60000) -> None:
        self.cuda, self.stream = cuda, cuda.new_stream()
        specs = {"points": ((capacity, 5), F32), "count": ((1,), I32)}
        self.arena = Arena(cuda, specs, mirrored=True)  # type: ignore[arg-type]
        cloud = Cloud(
            points=Pointer(self.arena.address("points")), count=Pointer(self.arena.address("count")), capacity=capacity
        )
        self.cells = DeviceCells(DeviceKernels(cuda), geometry, limits_of(geometry, most), cloud)  # type: ignore[arg-type]

    def measure(self, points: np.ndarray) -> None:
        self.arena.host("points")[: len(points)] = points
        self.arena.host("count")[0] = len(points)
        self.arena.upload(self.stream)
        self.cells.queue_measure(self.stream)
        self.cuda.synchronise(self.stream)
        self.found = self.cells.measured()

    def tables(self, rooms: RowCounts) -> dict[str, np.ndarray]:
        shapes = self.cells.shapes(rooms)
        specs = {name: (shape, F32 if name == "voxels" else I32) for name, shape in shapes.items()}
        inputs = Arena(self.cuda, specs, mirrored=True)  # type: ignore[arg-type]
        self.cells.queue_tables(inputs, self.stream)
        inputs.download(self.stream)
        self.cuda.synchronise(self.stream)
        return {name: inputs.host(name).copy() for name in shapes}


def cloud(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 5)) * [3, 3, 1.2, 30, 0.1]).astype(np.float32)


def hold_to_host(device: Device, geometry: Geometry, points: np.ndarray, *, more: float = 0.0) -> None:
    """Same counts, features and tables as on the host; with `more` rows than needed in every segment."""
    voxels, builder = Voxeliser(geometry)(points), SparseTableBuilder(geometry)
    asked: list[RowCounts] = []

    def rooms_for(counts: RowCounts) -> RowCounts:
        asked.append(counts)
        grown = [tuple(rows + int(rows * more) for rows in level) for level in counts.least().levels]
        return RowCounts(levels=tuple(grown), out=counts.out + int(counts.out * more))  # type: ignore[arg-type]

    places, tables = builder.build(voxels.keys_n, rooms_for)
    device.measure(points)
    assert device.found.counts == asked[0]
    assert device.found.voxels == len(voxels.keys_n) + voxels.dropped
    assert not device.found.crowded
    found = device.tables(rooms_for(asked[0]))
    assert set(found) == {"voxels", *tables}
    np.testing.assert_array_equal(found["voxels"], in_rows(voxels.features_nc, places))
    for name, table in tables.items():
        np.testing.assert_array_equal(found[name], table, err_msg=name)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 4096, 4097, 70000])
def test_prefix_sums(cuda: FakeCuda, count: int) -> None:
    values = np.random.default_rng(count).integers(0, 9, count).astype(np.int32)
    arena = Arena(cuda, {"values": ((count,), I32)}, mirrored=True)  # type: ignore[arg-type]
    arena.write({"values": values})
    arena.upload(cuda.stream)
    sums = PrefixSum(DeviceKernels(cuda), count)  # type: ignore[arg-type]
    sums.queue(Pointer(arena.address("values")), cuda.stream)
    arena.download(cuda.stream)
    cuda.synchronise()
    np.testing.assert_array_equal(arena.host("values"), np.cumsum(values) - values)


@pytest.mark.parametrize("more", [0.0, 0.3])
def test_frames_one_after_the_other(cuda: FakeCuda, more: float) -> None:
    """Full, smaller, one point, full again: nothing of a frame stays."""
    device = Device(cuda, GEOMETRY, capacity=4000)
    for count, seed in ((4000, 1), (700, 2), (1, 3), (3999, 4)):
        hold_to_host(device, GEOMETRY, cloud(count, seed), more=more)


def test_voxels_beyond_the_limit_are_those_seen_last(cuda: FakeCuda) -> None:
    few = dataclasses.replace(GEOMETRY, max_voxels=200)
    device = Device(cuda, few, capacity=2000)
    hold_to_host(device, few, cloud(2000, 5))
    assert device.found.voxels > 200
    assert sum(device.found.counts.levels[0]) == 200


def test_nothing_inside_the_range(cuda: FakeCuda) -> None:
    device = Device(cuda, GEOMETRY, capacity=100)
    for points in (
        np.zeros((0, 5), np.float32),
        np.full((50, 5), 1e30, np.float32),
        np.full((5, 5), np.nan, np.float32),
    ):
        device.measure(points)
        assert not device.found.counts.seen
        assert device.found.voxels == 0


def test_edges_of_the_range(cuda: FakeCuda) -> None:
    """Points on and around the planes between cells fall where the host puts them."""
    steps = np.arange(-20, 21)
    xyz = np.stack(np.meshgrid(steps * 0.4, steps * 0.5, [-3.0, 0.0, 2.9999998, 3.0], indexing="ij"), -1).reshape(-1, 3)
    points = np.zeros((2 * len(xyz), 5), np.float32)
    points[:, :3] = np.concatenate([xyz, np.nextafter(xyz.astype(np.float32), np.float32(-100))])
    hold_to_host(Device(cuda, GEOMETRY, capacity=len(points)), GEOMETRY, points)


def test_a_crowded_level_is_told(cuda: FakeCuda) -> None:
    """More rows than a level accepts: the host, which knows which are nearest, has to make the tables."""
    limited = dataclasses.replace(GEOMETRY, level_rows=(100, 50))
    device = Device(cuda, limited, capacity=2000)
    device.measure(cloud(2000))
    assert device.found.crowded


def test_a_grid_too_fine_for_packed_cells(cuda: FakeCuda) -> None:
    wide = dataclasses.replace(GEOMETRY, voxel_size=(0.001, 0.5, 0.3))
    with pytest.raises(UnsupportedError, match="voxel grid of 16000 x 24 x 21 cells"):
        Device(cuda, wide, capacity=10)


@pytest.mark.real
@pytest.mark.skipif(not SWEEPS.is_file(), reason="no real sensor frames beside the checkout")
def test_the_real_cloud_of_ten_sweeps(cuda: FakeCuda) -> None:
    points = np.fromfile(SWEEPS, np.float16).reshape(-1, 5).astype(np.float32)
    device = Device(cuda, NUSCENES, capacity=len(points) + 5000, most=240000)
    hold_to_host(device, NUSCENES, points, more=0.1)
    assert device.found.voxels == 105086
