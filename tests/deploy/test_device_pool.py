"""Pooling tables on the device, the kernels run by the processor in a shuffled order: bit by bit the host's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cuda_double import FakeCuda
from kernels_on_cpu import CpuModule
from tiny_bundle import GEOMETRY as TOY
from tiny_bundle import frame

from altermoma.deploy import device_kernels
from altermoma.deploy.buckets import Buckets, Limits
from altermoma.deploy.device_kernels import DeviceKernels
from altermoma.deploy.device_memory import Arena
from altermoma.deploy.device_pool import DevicePool
from altermoma.errors import DataError
from altermoma.frames import Calibration
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.ops.padding import Padding, Unpadded
from altermoma.ops.pooling_tables import build_pooling_tables

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
FINE = dataclasses.replace(TOY, pool_cell=0.5, depth_bins=(1.0, 6.0, 0.25), fan_in=(4, 3, 2))
NUSCENES = Geometry(
    image=ImageGeometry(height=256, width=704, resize=0.48, resample="bicubic"),
    point_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
    voxel_size=(0.075, 0.075, 0.2),
    lidar_levels=3,
    depth_bins=(1.0, 60.0, 0.5),
    pool_cell=0.3,
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(device_kernels, "compile_kernels", lambda name, *_: name.encode())
    return FakeCuda(CpuModule)


def hold_to_host(cuda: FakeCuda, geometry: Geometry, calibrations: list[Calibration], padding: Padding) -> None:
    pool = DevicePool(DeviceKernels(cuda), geometry, padding)  # type: ignore[arg-type]
    for calibration in calibrations:
        wanted = build_pooling_tables(calibration, geometry, padding=padding)
        pool.queue_measure(calibration, cuda.stream)
        cuda.synchronise()
        shapes = pool.shapes()
        assert shapes == {name: table.shape for name, table in wanted.items()}
        specs = {name: (shape, np.dtype(np.int32)) for name, shape in shapes.items()}
        tables = Arena(cuda, specs, mirrored=True)  # type: ignore[arg-type]
        pool.queue_tables(tables, cuda.stream)
        tables.download(cuda.stream)
        cuda.synchronise()
        for name, table in wanted.items():
            np.testing.assert_array_equal(tables.host(name), table, err_msg=name)


def turned(degrees: float) -> Calibration:
    """The toy's cameras, tilted about the axis that they look along."""
    calibration, angle = frame().calibration, np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return dataclasses.replace(calibration, camera_from_lidar_v44=turn @ calibration.camera_from_lidar_v44)


@pytest.mark.parametrize("geometry", [TOY, FINE], ids=["one level of sums", "two"])
def test_calibrations_one_after_the_other(cuda: FakeCuda, geometry: Geometry) -> None:
    """Level, tilted, on its side, away from the range, level again: nothing of a calibration stays."""
    away = frame().calibration.camera_from_lidar_v44.copy()
    away[:, :3, 3] = 1e6
    nothing = dataclasses.replace(frame().calibration, camera_from_lidar_v44=away)
    calibrations = [turned(0.0), turned(10.0), turned(90.0), nothing, turned(0.0)]
    hold_to_host(cuda, geometry, calibrations, Unpadded())


def test_tables_with_room(cuda: FakeCuda) -> None:
    limits = Limits(rows=None, finest=0, sizes={"pool_depth": 400, "pool_sum_1": 5000, "pool_sum_2": 5000})
    hold_to_host(cuda, FINE, [turned(3.0), turned(45.0)], Buckets(limits))


def test_too_many_runs_for_a_cell(cuda: FakeCuda) -> None:
    narrow = dataclasses.replace(TOY, fan_in=(2, 2))
    pool = DevicePool(DeviceKernels(cuda), narrow, Unpadded())  # type: ignore[arg-type]
    pool.queue_measure(turned(90.0), cuda.stream)
    cuda.synchronise()
    with pytest.raises(DataError, match="runs of lifted pixels"):
        pool.shapes()
    with pytest.raises(DataError, match="runs of lifted pixels"):
        build_pooling_tables(turned(90.0), narrow)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real sensor frames beside the checkout")
def test_the_real_calibration(cuda: FakeCuda) -> None:
    from altermoma.data.nuscenes import NuScenesReader

    reader = NuScenesReader(REAL / "nuscenes_one_frame", "v1.0-mini", sweeps=1)
    hold_to_host(cuda, NUSCENES, [reader.read(reader.tokens("mysplit")[0]).calibration], Unpadded())
