"""A bundle's engines as a `DeviceFrame`, with what prepares its frames."""

from __future__ import annotations

from collections.abc import Mapping

from altermoma.deploy.buckets import Limits
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.device_feed import DeviceFeed
from altermoma.deploy.device_frame import DeviceFrame
from altermoma.deploy.device_inputs import Feed
from altermoma.deploy.engines import StageEngine
from altermoma.deploy.host_feed import HostFeed
from altermoma.deploy.pipeline import Preparation
from altermoma.deploy.tensorrt_backend import load_engines
from altermoma.errors import UnsupportedError
from altermoma.progress import say


def open_device(bundle: Bundle, precision: str, preparation: Preparation = "auto") -> DeviceFrame:
    """Loads the engines of every stage and gets them ready for whole frames.

    Raises:
        EngineError: no GPU, or no engines for it.
        UnsupportedError: tensorrt is not installed; or "device" where the kernels cannot be compiled or do not serve.
    """
    geometry = bundle.manifest.geometry
    pillars = geometry.lidar == "pillars"
    limits = Limits.of_stages(bundle.stages(precision), geometry.lidar_levels + 1, pillars=pillars)
    engines = load_engines(bundle, precision)
    return DeviceFrame(engines, _feed(bundle, engines, limits, preparation))


def _feed(bundle: Bundle, engines: Mapping[str, StageEngine], limits: Limits, preparation: Preparation) -> Feed:
    geometry = bundle.manifest.geometry
    if preparation == "host":
        return HostFeed(geometry, limits)
    produced = {spec.name for engine in engines.values() for spec in engine.record.outputs}
    types = {
        name: dtype for engine in engines.values() for name, dtype in engine.dtypes.items() if name not in produced
    }
    try:
        image_hw = bundle.reference().calibration.image_hw
        return DeviceFeed(engines["camera"].cuda, geometry, limits, image_hw, types)
    except UnsupportedError as error:
        if preparation == "device":
            raise
        say(f"frames are prepared on the host: {error.found}")
        return HostFeed(geometry, limits)
