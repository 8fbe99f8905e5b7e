"""A synthetic driving world in the true nuScenes schema, made to need both a LiDAR and cameras.

Shared: where and how large things are. LiDAR only: exact geometry, also of what a picture fakes (murals of cars,
posters of people, cones painted on the ground). Cameras only: colour and texture, which alone separate trucks from
construction vehicles, buses from trailers, motorcycles from bicycles, and objects from dull clutter of the same size;
they also see well where LiDAR returns are few. Both suffer from occlusion and noise.
"""

from __future__ import annotations

from altermoma.data.synth.writer import cached_world, write_world

__all__ = ["cached_world", "write_world"]
