"""What a fusion model is made of. Numbers only; `presets` names the combinations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from altermoma.geometry import Geometry


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Stages of a ResNet; widths are those of the 3x3 convolutions (a bottleneck puts out four times as many)."""

    block: Literal["basic", "bottleneck"] = "basic"
    stem: int = 32
    widths: tuple[int, int, int, int] = (32, 64, 128, 128)
    blocks: tuple[int, int, int, int] = (1, 1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Stages of a Swin transformer; each has twice the channels of the one before."""

    embed: int = 96
    patch: int = 4
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: int = 4


BackboneConfig = ResNetConfig | SwinConfig
"""What makes features of pictures; see altermoma.models.backbone."""


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Image neck and depth-supervised lift (DepthLSS)."""

    neck: int = 64
    depth_widths: tuple[int, int, int] = (8, 16, 32)
    depthnet: int = 64
    channels: int = 32
    downsample: int = 1


@dataclass(frozen=True, kw_only=True)
class LidarConfig:
    """SECOND's sparse encoder. `stages[i]` lists a stage's widths; the last of each but the last stage is strided."""

    base: int = 16
    stages: tuple[tuple[int, ...], ...] = ((16, 32), (32, 32), (32,))
    channels: int = 32


@dataclass(frozen=True, kw_only=True)
class PillarConfig:
    """PointPillars' point network: output widths of its layers. For a geometry whose `lidar` is "pillars"."""

    widths: tuple[int, ...] = (64, 64)

    @property
    def channels(self) -> int:
        return self.widths[-1]


@dataclass(frozen=True, kw_only=True)
class BevConfig:
    """Fuser, SECOND backbone and SECONDFPN neck."""

    fuser: int = 64
    widths: tuple[int, ...] = (48, 80)
    layers: tuple[int, ...] = (2, 2)
    strides: tuple[int, ...] = (1, 2)
    neck: tuple[int, ...] = (32, 32)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """TransFusion head with one decoder layer."""

    classes: int = 10
    proposals: int = 100
    embed: int = 48
    attention_heads: int = 4
    ffn: int = 96
    branch: int = 32
    point_classes: tuple[int, ...] = (8, 9)


@dataclass(frozen=True, kw_only=True)
class MapConfig:
    """BEV map segmentation head, on a square grid around the LiDAR.

    Attributes:
        low, cell, cells: lowest x and y, size of a cell (m), cells along x and along y.
        hidden: width of the classifier; 0 takes that of the map it reads.
    """

    classes: int = 6
    low: float = -50.0
    cell: float = 0.5
    cells: int = 200
    hidden: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole camera-LiDAR detector."""

    geometry: Geometry = field(default_factory=Geometry)
    backbone: BackboneConfig = field(default_factory=ResNetConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    lidar: LidarConfig | PillarConfig = field(default_factory=LidarConfig)
    bev: BevConfig = field(default_factory=BevConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    map: MapConfig | None = None
