"""Whole frames on the device: results, graphs, and that everything that must be ordered is ordered."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_double import FakeCuda, RaceError
from device_machine import become_gpu_machine, built
from kernels_on_cpu import CpuModule
from tensorrt_double import VERSIONS, TensorRtDouble
from tiny_bundle import frame

from altermoma.deploy.buckets import Buckets
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.device_feed import DeviceFeed
from altermoma.deploy.device_frame import LINE_PARTS, DeviceFrame
from altermoma.deploy.device_memory import Arena
from altermoma.deploy.device_pool import DevicePool
from altermoma.deploy.pipeline import NO_POINTS, Pipeline, Preparation
from altermoma.deploy.tensorrt_engines import why_not
from altermoma.errors import DataError, EngineError, UnsupportedError
from altermoma.frames import Calibration, Frame
from altermoma.geometry import Geometry

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")

ONE = pytest.mark.parametrize("trt", ["10.3.0"], indirect=True)


@pytest.fixture
def cuda(trt: TensorRtDouble, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda(CpuModule)
    become_gpu_machine(trt, made, monkeypatch)
    return made


@pytest.fixture(params=["host", "device"])
def preparation(request: pytest.FixtureRequest) -> Preparation:
    prepared: Preparation = request.param
    return prepared


@pytest.fixture
def pipeline(cuda: FakeCuda, copied: Path, preparation: Preparation) -> Pipeline:
    del cuda
    return Pipeline.from_bundle(built(copied), "tensorrt", precision="fp32", preparation=preparation)


def on_cpu(bundle: Bundle, of: Frame) -> np.ndarray:
    return answer(Pipeline.from_bundle(bundle, precision="fp32"), of)


def answer(pipeline: Pipeline, of: Frame) -> np.ndarray:
    return pipeline(of.images_vhw3, of.points_p5, of.calibration).boxes.geometry_m9


def device_of(pipeline: Pipeline) -> DeviceFrame:
    assert pipeline.device is not None
    return pipeline.device


def moved(of: Frame, metres: float) -> Frame:
    poses = of.calibration.camera_from_lidar_v44.copy()
    poses[:, :3, 3] += metres
    return dataclasses.replace(of, calibration=dataclasses.replace(of.calibration, camera_from_lidar_v44=poses))


def test_frames_are_right_on_every_version(pipeline: Pipeline, trt: TensorRtDouble, bundle: Bundle) -> None:
    """The first frame of a bucket is queued, the second captured, then replayed; all as on ONNX Runtime."""
    for seed, points in ((1, 300), (2, 290), (3, 280), (4, 20), (5, 30), (6, 300)):
        np.testing.assert_array_equal(answer(pipeline, frame(seed, points)), on_cpu(bundle, frame(seed, points)))
    # 8.5 keeps one bucket, and that of the last frame has been seen once.
    kept = 0 if trt.__version__.startswith("8.5") else 2
    assert device_of(pipeline).captures() == {"camera": 1, "lidar": kept, "head": 1}
    assert device_of(pipeline).refusals() == {}
    assert device_of(pipeline).memory_bytes() > 0


@ONE
def test_nothing_but_inputs_and_the_answer_is_copied(pipeline: Pipeline, cuda: FakeCuda) -> None:
    of = frame(1)
    answer(pipeline, of)
    cuda.log.clear()
    answer(pipeline, of)
    copies = [name for _, name in cuda.log if name in {"upload", "download"}]
    wanted = {
        "host": ["upload", "upload", "download"],  # images and depth; voxels and tables; the head's outputs
        "device": ["upload", "upload", "upload", "download", "download"],  # cloud, pictures, cameras; counts, outputs
    }
    assert copies == wanted[device_of(pipeline).feed.preparation]
    streams = {name: stream for stream, name in cuda.log if name.startswith("engine")}
    assert len(set(streams.values())) == 2
    assert streams["engine lidar_bev"] not in {streams[n] for n in streams if n != "engine lidar_bev"}


@ONE
def test_timings_name_what_is_queued_together(pipeline: Pipeline) -> None:
    of = frame(1)
    found = pipeline(of.images_vhw3, of.points_p5, of.calibration)
    assert set(LINE_PARTS.values()) <= set(found.timings_ms)
    on_host = {"host": {"images", "depth", "voxels", "tables"}, "device": {"copies", "cells"}}
    assert {"decode", *on_host[device_of(pipeline).feed.preparation]} <= set(found.timings_ms)
    empty = pipeline(of.images_vhw3, np.zeros((0, 5), np.float32), of.calibration)
    assert LINE_PARTS["lidar"] not in empty.timings_ms


@ONE
def test_a_small_change_of_calibration_keeps_the_graphs(
    pipeline: Pipeline, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New tables of the same shape are uploaded; only tables that outgrow theirs are captured again."""
    of = frame(1)
    for _ in range(3):
        answer(pipeline, of)
    pools = [device_of(pipeline)._pool]
    for metres in (1e-4, 0.1):
        of = moved(of, metres)
        np.testing.assert_array_equal(answer(pipeline, of), on_cpu(bundle, of))
        pools.append(device_of(pipeline)._pool)
    assert pools[0] is pools[1]
    monkeypatch.setattr(Buckets, "size", lambda _, table, rows: rows)
    wide = dataclasses.replace(of, calibration=spread(of.calibration))
    for _ in range(3):
        np.testing.assert_array_equal(answer(pipeline, wide), on_cpu(bundle, wide))
    assert device_of(pipeline)._pool is not pools[0]
    assert device_of(pipeline).captures()["camera"] == 1


@pytest.mark.parametrize("trt", ["8.5.2.2", "8.6.1", "10.3.0"], indirect=True)
def test_tables_of_other_shapes_and_back(pipeline: Pipeline, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 8.5 one context at a time may use the profile, for pooling tables as for buckets."""
    monkeypatch.setattr(Buckets, "size", lambda _, table, rows: rows)
    wide = dataclasses.replace(frame(1), calibration=spread(frame(1).calibration))
    for of in (frame(1), wide, wide, frame(1)):
        np.testing.assert_array_equal(answer(pipeline, of), on_cpu(bundle, of))


def spread(calibration: Calibration) -> Calibration:
    """Cameras that lie on their side: every column is in many cells."""
    turn = np.eye(4)
    turn[:2, :2] = [[0, -1], [1, 0]]
    return dataclasses.replace(calibration, camera_from_lidar_v44=turn @ calibration.camera_from_lidar_v44)


@ONE
def test_degraded_frames_are_answered_and_flagged(pipeline: Pipeline, bundle: Bundle) -> None:
    of = frame(1)
    answer(pipeline, of)
    cpu = Pipeline.from_bundle(bundle, precision="fp32")
    black = of.images_vhw3.copy()
    black[1] = 0
    far = np.full((5, 5), 1000.0, np.float32)
    crowd = frame(3, points=1500).points_p5
    timeless = of.points_p5.copy()
    timeless[:, 4] = np.nan
    for images, points in (
        (of.images_vhw3, timeless),
        (black, of.points_p5),
        (of.images_vhw3, of.points_p5[:0]),
        (of.images_vhw3, far),
        (of.images_vhw3, crowd),
        (of.images_vhw3, of.points_p5),
    ):
        found, wanted = (p(images, points, of.calibration) for p in (pipeline, cpu))
        assert found.warnings == wanted.warnings
        np.testing.assert_array_equal(found.boxes.geometry_m9, wanted.boxes.geometry_m9)
    assert pipeline(of.images_vhw3, far, of.calibration).warnings == (NO_POINTS,)


@ONE
def test_a_graph_that_cannot_be_captured_is_told(
    pipeline: Pipeline, cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stream: int, work: Callable[[], None]) -> None:
        raise EngineError("no graph today")

    monkeypatch.setattr(cuda, "capture", refuse)
    for seed in (1, 2, 3):
        np.testing.assert_array_equal(answer(pipeline, frame(seed)), on_cpu(bundle, frame(seed)))
    assert device_of(pipeline).refusals() == dict.fromkeys(("head", "camera", "lidar"), "no graph today")


@ONE
def test_a_capture_that_failed_by_chance_is_made_again(
    pipeline: Pipeline, cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever spoilt it, the frame is queued as it is, and the next one is captured."""
    capture, spoilt = cuda.capture, set[int]()

    def once(stream: int, work: Callable[[], None]) -> Any:
        graph = capture(stream, work)
        if id(work) not in spoilt:
            spoilt.add(id(work))
            raise EngineError("not now")
        return graph

    monkeypatch.setattr(cuda, "capture", once)
    for seed in (1, 2, 3, 4):
        np.testing.assert_array_equal(answer(pipeline, frame(seed)), on_cpu(bundle, frame(seed)))
    assert device_of(pipeline).refusals() == {}
    assert device_of(pipeline).captures() == {"camera": 1, "lidar": 1, "head": 1}


@ONE
def test_a_pipeline_leaves_the_device_when_it_is_dropped(
    cuda: FakeCuda, copied: Path, preparation: Preparation
) -> None:
    """At once: another one made after it finds its memory free, without a collection of garbage."""
    bundle, before = built(copied), cuda.held_bytes()
    made = Pipeline.from_bundle(bundle, "tensorrt", precision="fp32", preparation=preparation)
    for seed in (1, 2, 3):
        answer(made, frame(seed))
    gc.collect()
    gc.disable()
    try:
        assert cuda.held_bytes() > before
        del made
        assert cuda.held_bytes() == before
    finally:
        gc.enable()


@ONE
@pytest.mark.parametrize("arena", ["_between", "_answer", "_images"])
def test_memory_that_graphs_use_and_nobody_owns_would_be_found(pipeline: Pipeline, cuda: FakeCuda, arena: str) -> None:
    for seed in (1, 2, 3):
        answer(pipeline, frame(seed))
    device = device_of(pipeline)
    old = getattr(device, arena)
    specs = {name: (shape, old.dtypes[name]) for name, shape in old.shapes.items()}
    # The lines' closures own the images and the answer as well: they are made to forget them.
    lines = [device._head, *([device._pool.line] if device._pool else [])]
    for line in lines:
        line._work = lambda: None
    setattr(device, arena, Arena(cuda, specs, mirrored=True))  # type: ignore[arg-type]
    del old
    with pytest.raises(RaceError, match="not any more"):
        answer(pipeline, frame(4))
    cuda.forget()


@ONE
def test_after_a_failure_the_next_frame_is_right(pipeline: Pipeline, trt: TensorRtDouble, bundle: Bundle) -> None:
    answer(pipeline, frame(1))
    execute = trt.answers[("IExecutionContext", "execute_async_v3")]
    trt.answers[("IExecutionContext", "execute_async_v3")] = lambda *_: False
    with pytest.raises(EngineError, match="did not run"):
        answer(pipeline, frame(2))
    trt.answers[("IExecutionContext", "execute_async_v3")] = execute
    for seed in (3, 4, 5):
        np.testing.assert_array_equal(answer(pipeline, frame(seed)), on_cpu(bundle, frame(seed)))


@ONE
@pytest.mark.parametrize("preparation", ["device"], indirect=True)
def test_a_refused_calibration_leaves_nothing_behind(
    pipeline: Pipeline, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on the device by the time that it is refused: the one before it has to be counted again."""
    answer(pipeline, frame(1))
    wide = dataclasses.replace(frame(1), calibration=spread(frame(1).calibration))
    with monkeypatch.context() as patched:
        patched.setattr(DevicePool, "shapes", refuse_calibration)
        with pytest.raises(DataError, match="too many runs"):
            answer(pipeline, wide)
    feed = device_of(pipeline).feed
    assert isinstance(feed, DeviceFeed)
    before = feed._pool_inputs.version
    np.testing.assert_array_equal(answer(pipeline, frame(1)), on_cpu(bundle, frame(1)))
    assert feed._pool_inputs.version == before + 1


def refuse_calibration(_: DevicePool) -> None:
    raise DataError("too many runs")


@ONE
@pytest.mark.parametrize("preparation", ["device"], indirect=True)
def test_buffers_made_for_a_frame_that_failed(
    pipeline: Pipeline, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More points than ever, and their upload fails: what was captured over the old buffers is not used again."""
    for seed in (1, 2, 3):
        answer(pipeline, frame(seed))
    device = device_of(pipeline)
    with monkeypatch.context() as patched:
        patched.setattr(Arena, "upload", fail_upload)
        with pytest.raises(EngineError, match="no upload today"):
            answer(pipeline, frame(4, 6000))
    assert device.captures() == {"camera": 0, "lidar": 0, "head": 1}
    np.testing.assert_array_equal(answer(pipeline, frame(5)), on_cpu(bundle, frame(5)))


def fail_upload(*_: Any) -> None:
    raise EngineError("no upload today")


def frames_to_try() -> list[Frame]:
    """Queued, captured and replayed; an empty cloud in between; another calibration."""
    empty = dataclasses.replace(frame(9), points_p5=np.zeros((0, 5), np.float32))
    return [frame(1), frame(2), frame(3), empty, frame(4), moved(frame(5), 0.1), frame(6)]


def run_all(pipeline: Pipeline) -> list[np.ndarray]:
    return [answer(pipeline, of) for of in frames_to_try()]


@ONE
@pytest.mark.parametrize("lost", ["wait", "wait_here", "record"])
def test_a_missing_synchronisation_is_found(
    pipeline: Pipeline, cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Every single point of a frame where one waits for another is needed, and is missed when it is not there."""
    answer(pipeline, frame(1))
    a_frame = calls_of(cuda, lost)
    answer(pipeline, frame(2))
    a_frame = [*a_frame]
    events = device_of(pipeline)._events
    # The other events only tell the time.
    clocks = {events[mark] for mark in ("begun", "lidar begun", "camera")}
    points = [point for point, arguments in enumerate(a_frame) if lost != "record" or arguments[0] not in clocks]
    each = 1 if device_of(pipeline).feed.preparation == "host" else 2
    assert len(points) == (2 * each if lost == "record" else each)
    monkeypatch.setattr(cuda, "elapsed_ms", lambda *_: 1.0)
    for point in points:
        assert found_missing(pipeline, cuda, bundle, lost, point)


@ONE
@pytest.mark.parametrize("preparation", ["device"], indirect=True)
def test_a_new_calibration_is_waited_for(pipeline: Pipeline, cuda: FakeCuda, bundle: Bundle) -> None:
    """Without the wait the sizes of its tables are not there yet."""
    answer(pipeline, frame(1))
    feed, here = device_of(pipeline).feed, cuda.wait_here
    assert isinstance(feed, DeviceFeed)
    cuda.wait_here = lambda event: None if event == feed._pooled else here(event)  # type: ignore[method-assign]
    wide = dataclasses.replace(frame(1), calibration=spread(frame(1).calibration))
    try:
        found = answer(pipeline, wide)
    except (RaceError, IndexError, ValueError, MemoryError, DataError):
        return
    assert not np.array_equal(found, on_cpu(bundle, wide))


def calls_of(cuda: FakeCuda, method: str) -> list[Any]:
    """What a method of the stand-in is called with from now on."""
    real, calls = getattr(cuda, method), list[Any]()
    setattr(cuda, method, lambda *arguments: (calls.append(arguments), real(*arguments))[1])
    return calls


def found_missing(pipeline: Pipeline, cuda: FakeCuda, bundle: Bundle, method: str, point: int) -> bool:
    """Whether a race or a wrong result shows when one call of every frame is left out."""
    real, calls = getattr(cuda, method), list[Any]()

    def without(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) - 1 != point:
            real(*arguments)

    setattr(cuda, method, without)
    try:
        for of in frames_to_try():
            calls.clear()
            if not np.array_equal(answer(pipeline, of), on_cpu(bundle, of)):
                return True
    except (RaceError, IndexError, ValueError, EngineError):  # what was read before it was there makes no sense
        return True
    finally:
        setattr(cuda, method, real)
        for stream in device_of(pipeline)._streams.values():
            cuda.synchronise(stream)
        cuda.forget()
    return False


@ONE
def test_the_lines_are_ordered_by_nothing_but_that(pipeline: Pipeline, cuda: FakeCuda, bundle: Bundle) -> None:
    """The same frames with everything in place; nothing else holds the device or this thread up."""
    waits, here, everything = calls_of(cuda, "wait"), calls_of(cuda, "wait_here"), calls_of(cuda, "synchronise")
    first = len(everything)
    for found, of in zip(run_all(pipeline), frames_to_try(), strict=True):
        np.testing.assert_array_equal(found, on_cpu(bundle, of))
    on_device = device_of(pipeline).feed.preparation == "device"
    assert len(waits) == (1 + on_device) * len(frames_to_try())
    # Three times the calibration is another one than before: the sizes of its tables have to be known.
    assert len(here) == len(waits) + 3 * on_device
    assert len(everything) - first <= 2 * on_device


@ONE
def test_lines_that_shared_memory_would_be_found(
    cuda: FakeCuda, copied: Path, preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The camera's and the LiDAR's scratch memory must not be one: they run at once."""
    shared = cuda.device_buffer(1 << 20)
    monkeypatch.setattr(DeviceFrame, "_scratch_of", lambda *_: shared)
    pipeline = Pipeline.from_bundle(built(copied), "tensorrt", precision="fp32", preparation=preparation)
    with pytest.raises(RaceError, match="nothing orders"):
        run_all(pipeline)


@ONE
def test_more_points_than_ever_make_room(pipeline: Pipeline, bundle: Bundle) -> None:
    """A cloud or image size that the buffers were not made for: they are made anew, and so are the graphs."""
    for of in (frame(1, 300), frame(2, 300), frame(3, 6000), frame(4, 300), frame(5, 6000)):
        np.testing.assert_array_equal(answer(pipeline, of), on_cpu(bundle, of))
    larger = frame(6)
    calibration = dataclasses.replace(larger.calibration, image_hw=(150, 200))
    images = np.random.default_rng(0).integers(0, 255, (2, 150, 200, 3), dtype=np.uint8)
    of = dataclasses.replace(larger, calibration=calibration, images_vhw3=images)
    for _ in range(3):
        np.testing.assert_array_equal(answer(pipeline, of), on_cpu(bundle, of))


@ONE
def test_a_crowded_level_is_prepared_on_the_host(cuda: FakeCuda, copied: Path, preparation: Preparation) -> None:
    """More rows than a level takes: the nearest stay, on whichever side the tables are made."""
    bundle = built(copied)
    limited = dataclasses.replace(bundle.manifest.geometry, level_rows=(60, 30))
    tight = bundle_with(bundle, limited)
    pipeline = Pipeline.from_bundle(tight, "tensorrt", precision="fp32", preparation=preparation)
    cpu = Pipeline.from_bundle(tight, precision="fp32")
    for seed, points in ((1, 300), (2, 20), (3, 310), (4, 300)):
        of = frame(seed, points)
        found, wanted = (p(of.images_vhw3, of.points_p5, of.calibration) for p in (pipeline, cpu))
        assert found.warnings == wanted.warnings
        np.testing.assert_array_equal(found.boxes.geometry_m9, wanted.boxes.geometry_m9)
    assert any("were dropped" in text for text in found.warnings)
    assert len(cuda.log) > 0


def bundle_with(bundle: Bundle, geometry: Geometry) -> Bundle:
    """The same files with another geometry."""
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, geometry=geometry))


@ONE
@pytest.mark.usefixtures("trt")
def test_kernels_that_do_not_serve_are_told(
    trt: TensorRtDouble, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for, an error; else the host does it, and says so."""
    become_gpu_machine(trt, FakeCuda(), monkeypatch)
    bundle = built(copied)
    with pytest.raises(UnsupportedError, match="runs no kernels"):
        Pipeline.from_bundle(bundle, "tensorrt", precision="fp32", preparation="device")
    pipeline = Pipeline.from_bundle(bundle, "tensorrt", precision="fp32")
    assert device_of(pipeline).feed.preparation == "host"
    assert "prepared on the host: this stand-in of a GPU runs no kernels" in capsys.readouterr().err


@ONE
@pytest.mark.usefixtures("cuda")
def test_stages_that_do_not_fit_are_refused(trt: TensorRtDouble, copied: Path) -> None:
    bundle = built(copied)
    read = trt.answers[("ICudaEngine", "get_tensor_dtype")]

    def other(engine: Any, name: str) -> Any:
        half = name == "bev" and "bev" in {value.name for value in engine.session.get_inputs()}
        return trt.DataType.HALF if half else read(engine, name)

    trt.answers[("ICudaEngine", "get_tensor_dtype")] = other
    with pytest.raises(EngineError, match="bev is float16 and float32 in different stages"):
        Pipeline.from_bundle(bundle, "tensorrt", precision="fp32")


@pytest.mark.gpu
@pytest.mark.parametrize("prepared", ["host", "device"])
def test_real_frames_on_a_real_gpu(copied: Path, bundle: Bundle, prepared: Preparation) -> None:
    """Queued, captured, replayed, another calibration, nothing to see: as on ONNX Runtime."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    pipeline = Pipeline.from_bundle(built(copied), "tensorrt", precision="fp32", preparation=prepared)
    for of in frames_to_try():
        np.testing.assert_allclose(answer(pipeline, of), on_cpu(bundle, of), atol=1e-4)
    assert device_of(pipeline).refusals() == {}
