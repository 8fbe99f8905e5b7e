"""A synthetic driving world in the true nuScenes schema."""

from __future__ import annotations

from altermoma.data.synth.writer import cached_world, write_world

__all__ = ["cached_world", "write_world"]
