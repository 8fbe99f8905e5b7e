"""From sensor arrays to boxes: the whole frame on one bundle, on ONNX Runtime or TensorRT, without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.bundle import Bundle
from altermoma.deploy.manifest import STAGES
from altermoma.deploy.stage_io import Arrays, StageRunner
from altermoma.errors import BundleError, DataError, UnsupportedError
from altermoma.frames import BLACK_LEVEL, Boxes, Calibration
from altermoma.geometry import Geometry
from altermoma.ops.decode import decode, decode_map
from altermoma.ops.prepare import FramePreparer, dropped_warning, nothing_seen, unusable_points

if TYPE_CHECKING:
    from altermoma.deploy.device_frame import DeviceFrame

Backend = Literal["onnxruntime", "tensorrt"]
Preparation = Literal["auto", "host", "device"]
_WAYS = get_args(Preparation)

PARTS: tuple[str, ...] = ("images", "depth", "voxels", "tables", *STAGES, "decode")
"""What a frame's time is made of, in order."""

NO_POINTS = "empty point cloud: the LiDAR branch sees nothing"

_FRAME = "hand over the frame as the bundle's reference/inputs.npz holds one"
_CALIBRATE = "load the vehicle's calibration again, and check its units and the order of its cameras"

_LAG = 4
"""Column of a point's time lag."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Answer for one frame.

    Attributes:
        map_cxy: float32 probabilities [classes, X, Y] in the order of `frames.MAP_CLASSES`; None without a map head.
        warnings: what was degraded and carried on with; empty for a healthy frame.
        timings_ms: milliseconds by part. On ONNX Runtime wall clock, by `PARTS`; a new calibration's pooling tables
            count as `tables`. On TensorRT the host's parts and the device time of what is queued together
            (`device_frame.LINE_PARTS`); they overlap, so that their sum is not the frame's.
    """

    boxes: Boxes
    map_cxy: NDArray[np.float32] | None = None
    warnings: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)


class Stopwatch:
    """Milliseconds by part."""

    def __init__(self, ms: Mapping[str, float] | None = None) -> None:
        self.ms: dict[str, float] = dict(ms or {})

    def time(self, part: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        self.ms[part] = (time.perf_counter() - started) * 1e3
        return result


class Pipeline:
    """A detector ready to run. Not thread-safe: one per thread.

    Args:
        runners: one per stage name of `STAGES`; none are needed where `device` is given.
        score_threshold: boxes below are left out.
        device: runs whole frames in place of the runners.
    """

    def __init__(
        self,
        geometry: Geometry,
        runners: Mapping[str, StageRunner],
        *,
        score_threshold: float = 0.0,
        device: DeviceFrame | None = None,
    ) -> None:
        missing = [name for name in STAGES if name not in runners and device is None]
        if missing:
            raise BundleError(f"no graph for stage {', '.join(missing)}", expected="all of " + ", ".join(STAGES))
        self.geometry = geometry
        self.runners = runners
        self.device = device
        self._preparer = FramePreparer(geometry)
        self._score_threshold = score_threshold

    @classmethod
    def from_bundle(
        cls,
        path: Path | str | Bundle,
        backend: Backend = "onnxruntime",
        *,
        precision: str | None = None,
        threads: int = 1,
        score_threshold: float = 0.0,
        preparation: Preparation = "auto",
    ) -> Pipeline:
        """Opens and checks a bundle and gets every stage ready.

        Args:
            path: the bundle folder, or a bundle already opened.
            backend: what runs the stages.
            precision: one of the bundle's; may be left out where it holds only one.
            threads: of ONNX Runtime, inside one operator.
            score_threshold: boxes below are left out.
            preparation: where images, voxels and tables are made with `tensorrt`; "auto" takes the device where its
                kernels can be compiled and serve this model, else the host. `pipeline.device.feed.preparation` tells.

        Raises:
            BundleError: the bundle is damaged, or lacks the precision.
            EngineError: `tensorrt` without a GPU, or without engines that were built for it.
            UnsupportedError: another backend or preparation.
        """
        for name, given, known in (("backend", backend, get_args(Backend)), ("preparation", preparation, _WAYS)):
            if given not in known:
                raise UnsupportedError(f"{name} {given!r}", expected=" or ".join(known), remedy="choose one of these")
        bundle = path if isinstance(path, Bundle) else Bundle.open(Path(path))
        chosen, geometry = choose_precision(bundle, precision), bundle.manifest.geometry
        if backend == "tensorrt":
            from altermoma.deploy.device_pipeline import open_device

            return cls(geometry, {}, score_threshold=score_threshold, device=open_device(bundle, chosen, preparation))
        return cls(geometry, open_stages(bundle, backend, chosen, threads=threads), score_threshold=score_threshold)

    def __call__(
        self, cameras_vhw3: NDArray[np.uint8], points_p5: NDArray[np.float32], calibration: Calibration
    ) -> Detections:
        """One frame.

        Args:
            cameras_vhw3: uint8 RGB, native size, in the order of the calibration; a dead camera is all zeros.
            points_p5: float32 x, y, z (m, LiDAR frame), intensity (0-255), time lag (s; NaN where it is not known); may
                have no rows. Without ego motion earlier sweeps cannot be moved here: hand over the last one alone.
            calibration: rebuilds the pooling tables when it changes, never the engines.

        Returns:
            Boxes in the LiDAR frame with warnings for degraded input and times by part.

        Raises:
            DataError: arrays of another dtype or shape, or NaN points.
        """
        if self.device is not None:
            outputs, warnings, watch = self._run_device(self.device, cameras_vhw3, points_p5, calibration)
        else:
            inputs, warnings = self.prepare(cameras_vhw3, points_p5, calibration)
            watch = Stopwatch(self._preparer.timings_ms)
            outputs = self.run_stages(inputs, watch)
        boxes = watch.time("decode", lambda: decode(outputs, self.geometry, self._score_threshold)[0])
        ground = decode_map(outputs)
        return Detections(
            boxes=boxes, map_cxy=None if ground is None else ground[0], warnings=warnings, timings_ms=watch.ms
        )

    def _run_device(
        self,
        device: DeviceFrame,
        cameras_vhw3: NDArray[np.uint8],
        points_p5: NDArray[np.float32],
        calibration: Calibration,
    ) -> tuple[Arrays, tuple[str, ...], Stopwatch]:
        from altermoma.deploy.device_inputs import RawFrame

        points_p5, late = _checked(cameras_vhw3, points_p5, calibration, self.geometry)
        answer = device.run(RawFrame(images_vhw3=cameras_vhw3, points_p5=points_p5, calibration=calibration))
        warnings = self._warnings(cameras_vhw3, calibration, seen=answer.seen, dropped=answer.dropped)
        return answer.outputs, warnings + late, Stopwatch(answer.timings_ms)

    def prepare(
        self, cameras_vhw3: NDArray[np.uint8], points_p5: NDArray[np.float32], calibration: Calibration
    ) -> tuple[Arrays, tuple[str, ...]]:
        """Graph inputs by name, and warnings: the host's share of a frame. Arguments and errors as in a call."""
        points_p5, late = _checked(cameras_vhw3, points_p5, calibration, self.geometry)
        dropped = self._preparer.dropped_voxels
        inputs = dict(self._preparer.prepare_parts(cameras_vhw3, points_p5, calibration))
        dropped = self._preparer.dropped_voxels - dropped
        warnings = self._warnings(cameras_vhw3, calibration, seen=not nothing_seen(inputs), dropped=dropped)
        return inputs, warnings + late

    def _warnings(
        self, cameras_vhw3: NDArray[np.uint8], calibration: Calibration, *, seen: bool, dropped: int
    ) -> tuple[str, ...]:
        warnings = [f"camera {name} is dead (an all-black image)" for name in _dead(cameras_vhw3, calibration)]
        if not seen:
            warnings.append(NO_POINTS)
        if dropped:
            warnings.append(dropped_warning(dropped, self.geometry))
        return tuple(warnings)

    def run_stages(self, inputs: Arrays, watch: Stopwatch | None = None) -> Arrays:
        """Graph inputs to the outputs of the last stage, by name; an empty LiDAR branch is zeros."""
        clock = watch or Stopwatch()
        tensors = dict(inputs)
        outputs: Arrays = {}
        for name in STAGES:
            runner = self.runners[name]
            if name == "lidar" and nothing_seen(tensors):
                outputs = _silent(runner)
            else:
                outputs = clock.time(name, lambda runner=runner: runner.run(tensors))  # type: ignore[misc]
            tensors.update(outputs)
        return outputs


def open_stages(bundle: Bundle, backend: Backend, precision: str, *, threads: int = 1) -> dict[str, StageRunner]:
    """One runner per stage of a bundle."""
    records = bundle.stages_for(backend, precision)
    if backend == "tensorrt":
        from altermoma.deploy.tensorrt_backend import open_engines

        return dict(open_engines(bundle, precision))
    from altermoma.deploy.onnxruntime_backend import OnnxRuntimeStage

    return {name: OnnxRuntimeStage(bundle.graph(record), record, threads=threads) for name, record in records.items()}


def choose_precision(bundle: Bundle, precision: str | None) -> str:
    """The asked precision, or the only one there is."""
    held = bundle.manifest.precisions
    if precision is not None:
        return precision
    if len(held) != 1:
        raise BundleError(
            f"bundle {bundle.folder} holds {', '.join(held) or 'no graphs'}",
            expected="a choice",
            remedy=f"pass precision={held[0]!r}" if held else "export again",
        )
    return held[0]


def _silent(runner: StageRunner) -> Arrays:
    """What the LiDAR stage gives for an empty scene: no voxel reaches any cell, so every cell is exactly zero."""
    specs = runner.record.outputs
    return {spec.name: np.zeros(runner.record.sizes(spec, "opt"), spec.dtype) for spec in specs}


def _dead(cameras_vhw3: NDArray[np.uint8], calibration: Calibration) -> list[str]:
    # A picture that is bright anywhere in a few rows need not be searched: native images of six cameras are 26 MB.
    return [
        name
        for name, image in zip(calibration.camera_names, cameras_vhw3, strict=True)
        if image[::32].max() <= BLACK_LEVEL and image.max() <= BLACK_LEVEL
    ]


def _checked(
    cameras_vhw3: NDArray[np.uint8], points_p5: NDArray[np.float32], calibration: Calibration, geometry: Geometry
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The points as the graphs take them, with warnings; an error for what is no frame."""
    given: tuple[tuple[str, object, type], ...] = (
        ("cameras_vhw3", cameras_vhw3, np.ndarray),
        ("points_p5", points_p5, np.ndarray),
        ("calibration", calibration, Calibration),
    )
    for name, value, kind in given:
        if not isinstance(value, kind):
            raise DataError(f"{name} is of type {type(value).__name__}", expected=kind.__name__, remedy=_FRAME)
    points_p5, late = _with_lags(points_p5, geometry)
    _check_frame(cameras_vhw3, points_p5, calibration, geometry)
    return points_p5, late


def _with_lags(points_p5: NDArray[np.float32], geometry: Geometry) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Points whose time is not known (NaN) are taken as of this moment, with a warning; other arrays as they are."""
    if points_p5.ndim != 2 or points_p5.shape[1] != geometry.point_features or geometry.point_features <= _LAG:
        return points_p5, ()
    unknown = np.isnan(points_p5[:, _LAG])
    if points_p5.dtype != np.float32 or not unknown.any():
        return points_p5, ()
    points_p5 = points_p5.copy()
    points_p5[unknown, _LAG] = 0.0
    return points_p5, (f"{int(unknown.sum())} points without a time lag: taken as measured now",)


def _check_frame(
    cameras_vhw3: NDArray[np.uint8], points_p5: NDArray[np.float32], calibration: Calibration, geometry: Geometry
) -> None:
    views = geometry.image.cameras
    expected = {
        "intrinsics_v33": (calibration.intrinsics_v33.shape, (views, 3, 3)),
        "camera_from_lidar_v44": (calibration.camera_from_lidar_v44.shape, (views, 4, 4)),
        "camera_names": ((len(calibration.camera_names),), (views,)),
        "cameras_vhw3": (cameras_vhw3.shape, (views, *calibration.image_hw, 3)),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise DataError(f"{name} has shape {list(found)}", expected=str(list(wanted)), remedy=_FRAME)
    if cameras_vhw3.dtype != np.uint8:
        raise DataError(f"cameras_vhw3 is {cameras_vhw3.dtype}", expected="uint8 RGB", remedy=_FRAME)
    if points_p5.ndim != 2 or points_p5.shape[1] != geometry.point_features or points_p5.dtype != np.float32:
        raise DataError(
            f"points_p5 is {points_p5.dtype} {list(points_p5.shape)}",
            expected=f"float32 [points, {geometry.point_features}]: x, y, z, intensity, time lag",
            remedy=_FRAME,
        )
    bad = unusable_points(points_p5)
    if bad:
        raise DataError(
            f"{bad} of {len(points_p5)} points hold NaN or infinity",
            expected="finite coordinates",
            remedy="drop the LiDAR driver's invalid returns: points[np.isfinite(points).all(axis=1)]",
        )
    if not (np.isfinite(calibration.intrinsics_v33).all() and np.isfinite(calibration.camera_from_lidar_v44).all()):
        raise DataError("the calibration holds NaN or infinity", expected="finite matrices", remedy=_CALIBRATE)
    if not (calibration.intrinsics_v33[:, (0, 1), (0, 1)] > 0).all():
        raise DataError(
            "the intrinsics hold a focal length of 0 or less",
            expected="fx and fy above 0, in pixels",
            remedy=_CALIBRATE,
        )
