"""A bundle's engines as a `DeviceFrame`, with what prepares its frames."""

from __future__ import annotations

from altermoma.deploy.buckets import Limits
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.device_frame import DeviceFrame, Feed
from altermoma.deploy.host_feed import HostFeed
from altermoma.deploy.pipeline import Preparation
from altermoma.deploy.tensorrt_backend import load_engines


def open_device(bundle: Bundle, precision: str, preparation: Preparation = "auto") -> DeviceFrame:
    """Loads the engines of every stage and gets them ready for whole frames.

    Raises:
        EngineError: no GPU, no engines for it, or "device" where its kernels cannot be compiled or used.
        UnsupportedError: tensorrt is not installed.
    """
    geometry = bundle.manifest.geometry
    pillars = geometry.lidar == "pillars"
    limits = Limits.of_stages(bundle.stages(precision), geometry.lidar_levels + 1, pillars=pillars)
    engines = load_engines(bundle, precision)
    feed: Feed = HostFeed(geometry, limits)
    del preparation
    return DeviceFrame(engines, feed)
