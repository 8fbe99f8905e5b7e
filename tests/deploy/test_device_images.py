"""Images and depth on the device, the kernels run by the processor in a shuffled order: bit by bit the host's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_double import FakeCuda
from kernels_on_cpu import CpuModule
from tiny_bundle import GEOMETRY as TOY
from tiny_bundle import frame

from altermoma.deploy import device_kernels
from altermoma.deploy.device_cells import Cloud
from altermoma.deploy.device_images import DeviceImages
from altermoma.deploy.device_kernels import DeviceKernels, Pointer
from altermoma.deploy.device_memory import Arena
from altermoma.frames import Frame
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.ops.prepare import FramePreparer

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
NUSCENES = Geometry(image=ImageGeometry(height=256, width=704, resize=0.48, resample="bicubic"))
F32 = np.dtype(np.float32)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(device_kernels, "compile_kernels", lambda name, *_: name.encode())
    return FakeCuda(CpuModule)


def hold_to_host(cuda: FakeCuda, geometry: Geometry, of: Frame) -> None:
    specs = {"points": (of.points_p5.shape, F32), "count": ((1,), np.dtype(np.int32))}
    arena = Arena(cuda, specs, mirrored=True)  # type: ignore[arg-type]
    arena.write({"points": of.points_p5, "count": np.array([len(of.points_p5)])})
    arena.upload(cuda.stream)
    cloud = Cloud(
        points=Pointer(arena.address("points")), count=Pointer(arena.address("count")), capacity=len(of.points_p5)
    )
    device = DeviceImages(DeviceKernels(cuda), geometry, of.calibration.image_hw, cloud)  # type: ignore[arg-type]
    image = geometry.image
    shapes = {
        "images": (image.cameras, 3, image.height, image.width),
        "depth": (image.cameras, 1, image.height, image.width),
    }
    found = Arena(cuda, {name: (shape, F32) for name, shape in shapes.items()}, mirrored=True)  # type: ignore[arg-type]
    device.pictures.write({"pictures": of.images_vhw3})
    device.pictures.upload(cuda.stream)
    device.aim(of.calibration)
    device.cameras.upload(cuda.stream)
    device.queue(found, cuda.stream)
    found.download(cuda.stream)
    cuda.synchronise()
    wanted = FramePreparer(geometry).camera_inputs(of.images_vhw3, of.points_p5, of.calibration)
    for name in shapes:
        np.testing.assert_array_equal(found.host(name), wanted[name], err_msg=name)
    assert np.count_nonzero(wanted["depth"]) > 0


@pytest.mark.parametrize("points", [50, 5000])
def test_toy_frames(cuda: FakeCuda, points: int) -> None:
    """With 5000 points on 4096 pixels, most pixels have several: the last one in the cloud wins."""
    hold_to_host(cuda, TOY, frame(1, points))


def test_pictures_of_the_networks_size_stay_as_they_are(cuda: FakeCuda) -> None:
    of = frame(2)
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 64, 3), dtype=np.uint8)
    calibration = of.calibration.__class__(**{**vars(of.calibration), "image_hw": (32, 64)})
    hold_to_host(cuda, TOY, Frame(**{**vars(of), "images_vhw3": images, "calibration": calibration}))


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real sensor frames beside the checkout")
def test_the_real_frame(cuda: FakeCuda) -> None:
    from altermoma.data.nuscenes import NuScenesReader

    reader = NuScenesReader(REAL / "nuscenes_one_frame", "v1.0-mini", sweeps=1)
    hold_to_host(cuda, NUSCENES, reader.read(reader.tokens("mysplit")[0]))
