"""The fusion detector: two branches meet in bird's-eye view. Children are named as in mmdet3d's BEVFusion."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn

from altermoma.errors import PruningError, RecipeError
from altermoma.models.backbone import Backbone
from altermoma.models.batch import FrameBatch
from altermoma.models.bev import ConvFuser, Second, SecondFpn
from altermoma.models.camera import DepthLift, LssNeck
from altermoma.models.config import LidarConfig, ModelConfig, PillarConfig, ResNetConfig
from altermoma.models.half import full_precision, widened
from altermoma.models.head import HeadOutputs, MapOutputs, TransFusionHead
from altermoma.models.map_head import MapHead
from altermoma.models.pillars import PillarEncoder
from altermoma.models.resnet import ResNet
from altermoma.models.sparse_encoder import SparseEncoder
from altermoma.models.swin import Swin
from altermoma.ops.pillars import DECORATIONS
from altermoma.ops.sparse_tables import level_shapes
from altermoma.recipe import Partition

Masked = Literal["none", "camera", "lidar"]

PARTITIONS: dict[str, Partition] = {
    "img_backbone": "camera",
    "img_neck": "camera",
    "view_transform": "camera",
    "pts_middle_encoder": "lidar",
    "pts_voxel_encoder": "lidar",
    "fusion_layer": "fusion",
    "pts_backbone": "fusion",
    "pts_neck": "fusion",
    "bbox_head": "fusion",
    "map_head": "fusion",
}
"""The paper's partitions c, l and f by child module."""


def _backbone(config: ModelConfig) -> Backbone:
    if isinstance(config.backbone, ResNetConfig):
        return ResNet(config.backbone)
    image = config.geometry.image
    return Swin(config.backbone, (image.height, image.width))


class FusionModel(nn.Module):
    """Camera-LiDAR detector with BEVFusion's structure.

    Voxels go through `pts_middle_encoder`, pillars through `pts_voxel_encoder`; a model has one of the two. `map_head`
    is None where the configuration has no map.
    """

    pts_middle_encoder: SparseEncoder
    pts_voxel_encoder: PillarEncoder
    map_head: MapHead | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        geometry = config.geometry
        self.config = config
        self.img_backbone = _backbone(config)
        self.img_neck = LssNeck(self.img_backbone.out_channels, config.camera.neck)
        self.view_transform = DepthLift(config.camera.neck, geometry.depth_count, config.camera)
        lidar_channels = self._add_lidar_encoder(config)
        self.fusion_layer = ConvFuser(config.camera.channels + lidar_channels, config.bev.fuser)
        self.pts_backbone = Second(config.bev.fuser, config.bev)
        self.pts_neck = SecondFpn(config.bev, geometry.head_stride)
        self.bbox_head = TransFusionHead(sum(config.bev.neck), geometry.bev_shape, config.head)
        self.map_head = MapHead(sum(config.bev.neck), geometry, config.map) if config.map else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _add_lidar_encoder(self, config: ModelConfig) -> int:
        """The encoder that the geometry asks for; returns the channels of its map."""
        geometry, lidar = config.geometry, config.lidar
        if geometry.lidar == "pillars" and isinstance(lidar, PillarConfig):
            point_columns = geometry.point_features + DECORATIONS
            self.pts_voxel_encoder = PillarEncoder(lidar, point_columns, geometry.fused_shape)
            return lidar.channels
        if geometry.lidar == "voxels" and isinstance(lidar, LidarConfig):
            self.pts_middle_encoder = SparseEncoder(lidar, geometry.point_features, geometry.fused_shape)
            return lidar.channels * level_shapes(geometry)[-1][2]
        raise RecipeError(
            f"a geometry of {geometry.lidar} with a {type(lidar).__name__}",
            expected="LidarConfig for voxels, PillarConfig for pillars",
        )

    def lift(self, images: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W], [N, 1, H, W] -> depth weights [N, h, w, D], pixel features [N, h, w, C]."""
        return self.view_transform.lift(self.img_neck(self.img_backbone(images)), depth)

    def pool(self, depth_weights: Tensor, pixel_features: Tensor, tables: list[Tensor], size: int) -> Tensor:
        """Lifted pixels -> camera BEV [B, C, X, Y]."""
        shape = self.config.geometry.pool_shape
        bev = self.view_transform.pooling(depth_weights, pixel_features, tables, size, shape)
        return self.view_transform.downsample(bev)  # type: ignore[no-any-return]

    def camera_branch(self, batch: FrameBatch) -> Tensor:
        """Camera BEV [B, C, X, Y]."""
        weights, features = self.lift(batch["images"], batch["depth"])
        return self.pool(weights, features, [batch[name] for name in self.pool_tables], batch.size)

    def lidar_branch(self, batch: FrameBatch) -> Tensor:
        """LiDAR BEV [B, C * Z, X, Y]; pillars have one height."""
        if self.config.geometry.lidar == "pillars":
            return self.pts_voxel_encoder(batch.tensors, batch.size)  # type: ignore[no-any-return]
        return self.pts_middle_encoder(batch["voxels"], batch.tensors, batch.size)  # type: ignore[no-any-return]

    def fuse(self, camera_bev: Tensor, lidar_bev: Tensor) -> Tensor:
        """Both BEV maps -> the map the head reads."""
        return self.pts_neck(self.pts_backbone(self.fusion_layer(camera_bev, lidar_bev)))  # type: ignore[no-any-return]

    def forward(self, batch: FrameBatch, masked: Masked = "none") -> HeadOutputs:
        """Detects; a masked branch hands zeros to the fusion and is not computed. Heads are never in sixteen bits."""
        camera = None if masked == "camera" else self.camera_branch(batch)
        lidar = None if masked == "lidar" else self.lidar_branch(batch)
        if camera is None:
            camera = self._zeros_like(lidar, self.camera_channels, batch)
        if lidar is None:
            lidar = self._zeros_like(camera, self.lidar_channels, batch)
        bev = widened(self.fuse(camera, lidar))
        with full_precision(bev):
            found: HeadOutputs = self.bbox_head(bev)
            return found if self.map_head is None else MapOutputs(**vars(found), map=self.map_head(bev))

    def _zeros_like(self, other: Tensor | None, channels: int, batch: FrameBatch) -> Tensor:
        if other is None:
            raise PruningError("both branches are masked", expected="at most one masked branch")
        return other.new_zeros(batch.size, channels, *self.config.geometry.fused_shape)

    @property
    def pool_tables(self) -> tuple[str, ...]:
        """Graph input names of the pooling tables."""
        sums = (f"pool_sum_{level}" for level in range(1, len(self.config.geometry.fan_in) + 1))
        return ("pool_depth", *sums)

    @property
    def camera_channels(self) -> int:
        """Channels of the camera's map; where it is downsampled, pruning can give it others than the lifted pixels."""
        convolutions = [part for part in self.view_transform.downsample.modules() if isinstance(part, nn.Conv2d)]
        if convolutions:
            return int(convolutions[-1].weight.shape[0])
        last = cast(nn.Conv2d, self.view_transform.depthnet[-1])
        return int(last.weight.shape[0]) - self.view_transform.depth_bins

    @property
    def lidar_channels(self) -> int:
        """Channels of the LiDAR's map: what else the fuser reads."""
        return int(cast(nn.Conv2d, self.fusion_layer[0]).weight.shape[1]) - self.camera_channels

    @staticmethod
    def partition_of(name: str) -> Partition:
        """The partition c, l or f that a parameter belongs to (paper, method section)."""
        child = name.split(".", 1)[0]
        if child not in PARTITIONS:
            raise PruningError(
                f"parameter {name} belongs to no partition",
                expected="one of " + ", ".join(PARTITIONS),
                remedy="declare the new child module in altermoma.models.fusion.PARTITIONS",
            )
        return PARTITIONS[child]
