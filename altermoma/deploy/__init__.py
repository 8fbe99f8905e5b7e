"""Bundles and what runs them on a vehicle: neither torch nor the models."""

from altermoma.deploy.bundle import Bundle, BundleContent, StageGraph, write_bundle
from altermoma.deploy.pipeline import Detections, Pipeline

__all__ = ["Bundle", "BundleContent", "Detections", "Pipeline", "StageGraph", "write_bundle"]
